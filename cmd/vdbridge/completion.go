package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v2"
)

// completionCommand writes shell completions, made from the commands themselves.
func completionCommand() *cli.Command {
	return &cli.Command{
		Name:      "completion",
		Usage:     "write the completion script of a shell",
		ArgsUsage: "bash|zsh|fish",
		Description: `  vdbridge completion bash >/etc/bash_completion.d/vdbridge
  vdbridge completion fish >~/.config/fish/completions/vdbridge.fish`,
		Action: func(c *cli.Context) error {
			shell, err := oneArg(c, "shell")
			if err != nil {
				return err
			}
			switch shell {
			case "bash":
				bashCompletion(c.App.Writer, c.App)
			case "zsh":
				fmt.Fprint(c.App.Writer, "#compdef vdbridge\nautoload -U +X bashcompinit && bashcompinit\n")
				bashCompletion(c.App.Writer, c.App)
			case "fish":
				fishCompletion(c.App.Writer, c.App)
			default:
				return usage("there is no completion for %q; there is one for bash, zsh and fish", shell)
			}
			return nil
		},
	}
}

func names(list []*cli.Command) string {
	var n []string
	for _, c := range visible(list) {
		n = append(n, c.Name)
	}
	return strings.Join(n, " ")
}

// longFlags are the flags as they are typed.
func longFlags(flags []cli.Flag) string {
	var n []string
	for _, f := range flags {
		for _, name := range f.Names() {
			if len(name) > 1 {
				n = append(n, "--"+name)
			}
		}
	}
	return strings.Join(n, " ")
}

func bashCompletion(w io.Writer, app *cli.App) {
	fmt.Fprintf(w, `# Completion of vdbridge, written by "vdbridge completion".
_vdbridge() {
	local cur=${COMP_WORDS[COMP_CWORD]} verb="" sub="" w i
	for ((i = 1; i < COMP_CWORD; i++)); do
		w=${COMP_WORDS[i]}
		[[ $w == -* ]] && continue
		if [[ -z $verb ]]; then verb=$w; elif [[ -z $sub ]]; then sub=$w; fi
	done
	local words="" files=yes
	case $verb in
	"") words=%q files="" ;;
`, names(app.Commands)+" --help --version")
	for _, c := range visible(app.Commands) {
		subs := visible(c.Subcommands)
		if len(subs) == 0 {
			fmt.Fprintf(w, "\t%s) words=%q ;;\n", c.Name, longFlags(c.Flags)+" --help")
			continue
		}
		fmt.Fprintf(w, "\t%s)\n\t\tcase $sub in\n", c.Name)
		for _, s := range subs {
			fmt.Fprintf(w, "\t\t%s) words=%q ;;\n", s.Name, longFlags(s.Flags)+" --help")
		}
		fmt.Fprintf(w, "\t\t*) words=%q files=\"\" ;;\n\t\tesac\n\t\t;;\n", names(c.Subcommands)+" --help")
	}
	fmt.Fprint(w, `	esac
	if [[ $cur == -* || -z $files ]]; then
		COMPREPLY=($(compgen -W "$words" -- "$cur"))
	else
		compopt -o filenames 2>/dev/null
		COMPREPLY=($(compgen -f -- "$cur"))
	fi
}
complete -F _vdbridge vdbridge
`)
}

func fishCompletion(w io.Writer, app *cli.App) {
	quote := func(s string) string {
		return "'" + strings.NewReplacer(`\`, `\\`, "'", `\'`, "`", "").Replace(s) + "'"
	}
	flags := func(when string, list []cli.Flag) {
		for _, f := range list {
			value, text := placeholder(f)
			line := "complete -c vdbridge -n " + quote(when)
			for _, n := range f.Names() {
				if len(n) > 1 {
					line += " -l " + n
				} else {
					line += " -s " + n
				}
			}
			if value != "" {
				line += " -r"
			}
			fmt.Fprintln(w, line+" -d "+quote(text))
		}
	}
	fmt.Fprintln(w, `# Completion of vdbridge, written by "vdbridge completion".`)
	for _, c := range visible(app.Commands) {
		fmt.Fprintf(w, "complete -c vdbridge -f -n __fish_use_subcommand -a %s -d %s\n", c.Name, quote(c.Usage))
		subs := visible(c.Subcommands)
		for _, s := range subs {
			fmt.Fprintf(w, "complete -c vdbridge -f -n %s -a %s -d %s\n", quote("__fish_seen_subcommand_from "+c.Name+"; and not __fish_seen_subcommand_from "+names(c.Subcommands)), s.Name, quote(s.Usage))
			flags("__fish_seen_subcommand_from "+c.Name+"; and __fish_seen_subcommand_from "+s.Name, s.Flags)
		}
		if len(subs) == 0 {
			flags("__fish_seen_subcommand_from "+c.Name, c.Flags)
		}
	}
}
