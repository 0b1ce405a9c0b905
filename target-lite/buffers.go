package targetlite

func defaultBufferMemory() int64 { return 256 << 20 }
