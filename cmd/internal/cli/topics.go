package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"hawser.dev/hawser/cmd/internal/cli/exit"
)

// topics returns what 'hawser help TOPIC' explains beside the verbs.
func topics() []*cobra.Command {
	return []*cobra.Command{
		{Use: "exit-codes", Short: "What the exit codes mean", Long: exitCodesText()},
		{Use: "environment", Short: "Environment variables", Long: environmentText},
		{Use: "formatting", Short: "Tables, JSON, YAML, and what stays the same in them", Long: formattingText},
	}
}

func exitCodesText() string {
	var b strings.Builder
	b.WriteString("hawser ends with one of these codes; a script may rely on them. Where several causes come together, 9 comes first.\n" +
		"A later version may add codes: take an unknown one for a failure.\n\n")
	for _, e := range exit.Table() {
		fmt.Fprintf(&b, "  %3d  %-23s %s\n", e.Code, e.Meaning, e.Causes)
	}
	return strings.TrimRight(b.String(), "\n")
}

const environmentText = `hawser reads these variables:

  NO_COLOR         not empty: no colour, unless --color always
  TERM             dumb: no colour, unless --color always
  HAWSER_STATE_DIR the folder of records, sockets and logs of attachments, and of the control sockets of targets. It must be
                   the user's own, with mode 0700; it is made where it is missing. Else it is /run/hawser for root
  XDG_RUNTIME_DIR  below it, in hawser/, is that folder for a user who is not root (without the variable: hawser-UID in
                   the directory for temporary files)
  XDG_STATE_HOME   below it, in hawser/, is the host identity of a user who is not root (else ~/.local/state)
  TMPDIR           the directory for temporary files (else /tmp)
  NOTIFY_SOCKET    where 'target serve' tells systemd that it is ready`

const formattingText = `stdout is data, stderr is for people. Results are printed as a table; --output changes that:

  table  for people; its columns may change
  json   one document (--json is the same)
  yaml   the same document as YAML
  jsonl  one JSON object a line: for streams, and for lists that another program reads line by line

Every document has "schemaVersion": 1. Within a version fields may be added, none is lost, renamed or changes its
meaning. Verbs that can change something have "changed": false means that all was already as asked for.

When a command fails, its error is one line on stderr, with a hint in a second line where there is a remedy:

  hawser: attach: nvme://192.0.2.10/…: connection refused
  hawser: hint: …

With json, yaml or jsonl it is one JSON object, the last line on stderr:

  {"schemaVersion":1,"error":{"code":6,"message":"…","hint":"…"}}

Colour is used only on a terminal. Work that takes longer than a second shows its progress on stderr when that is
a terminal, and nothing otherwise.`
