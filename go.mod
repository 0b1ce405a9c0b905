module hawser.dev/hawser

go 1.26
