// Command hawser makes a host fast to its block storage.
package main

import (
	"context"
	"os"

	"hawser.dev/hawser/cmd/internal/cli"
	"hawser.dev/hawser/cmd/internal/cli/iostreams"
)

func main() {
	os.Exit(cli.Main(context.Background(), os.Args[1:], iostreams.System()))
}
