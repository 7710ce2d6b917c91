// `loam completions SHELL`: a script that completes subcommands, their flags, presets and file names. It asks the --help of a
// subcommand for its flags when it needs them, so that it never goes out of date.
import { UserError } from "./base/errors.ts";
import { meant } from "./base/suggest.ts";
import { presets } from "./model/presets.ts";

/** Names and descriptions of all subcommands. */
export type Subcommands = readonly (readonly [name: string, what: string])[];

const SHELLS = { bash, zsh, fish };
const KNOWN = Object.keys(SHELLS) as (keyof typeof SHELLS)[];
const PRESETS = Object.keys(presets).join(" ");

const HELP = `Print completions for a shell. To have them in every new shell, write this in its start file

  ~/.bashrc                  source <(loam completions bash)
  ~/.zshrc, after compinit   source <(loam completions zsh)
  ~/.config/fish/config.fish loam completions fish | source`;

/** What `loam completions ...` prints. Throws UserError for a shell that it does not know. */
export function completions(args: string[], subcommands: Subcommands): string {
  const [shell] = args;
  if (shell === "--help") return HELP;
  const found = KNOWN.find((known) => known === shell);
  if (found && args.length === 1) return SHELLS[found](subcommands);
  if (shell === undefined || found) {
    throw new UserError(
      `Cannot print completions for "${args.join(" ")}": name one shell, such as loam completions bash`,
    );
  }
  throw new UserError(
    `Cannot print completions for ${shell}: there is no such shell; ${meant(shell, KNOWN)}`,
  );
}

/** Prints the flags in the help text on stdin, which begin its lines. */
const FLAGS = String.raw`sed -n 's/^ *\(--[a-z][a-z0-9_]*\).*/\1/p'`;

function bash(subcommands: Subcommands): string {
  return `_loam() {
  local word=\${COMP_WORDS[COMP_CWORD]} before=\${COMP_WORDS[COMP_CWORD - 1]} subcommand=\${COMP_WORDS[1]}
  # --preset=tiny is three words here
  if [ "$word" = "=" ]; then word=; elif [ "$before" = "=" ]; then before=\${COMP_WORDS[COMP_CWORD - 2]}; fi
  if [ "$COMP_CWORD" = 1 ]; then
    COMPREPLY=($(compgen -W "${subcommands.map(([name]) => name).join(" ")} --help --version" -- "$word"))
  elif [ "$subcommand" = completions ]; then
    COMPREPLY=($(compgen -W "${KNOWN.join(" ")}" -- "$word"))
  elif [ "$before" = --preset ]; then
    COMPREPLY=($(compgen -W "${PRESETS}" -- "$word"))
  elif [ "\${word#-}" != "$word" ]; then
    COMPREPLY=($(compgen -W "$("$1" "$subcommand" --help 2>/dev/null | ${FLAGS})" -- "$word"))
  fi
}
complete -o default -F _loam loam`;
}

function zsh(subcommands: Subcommands): string {
  return `_loam() {
  local -a subcommands=(${subcommands.map(([name, what]) => `'${name}:${what}'`).join(" ")})
  if (( CURRENT == 2 )); then
    _describe subcommand subcommands
  elif [[ $words[2] == completions ]]; then
    compadd ${KNOWN.join(" ")}
  elif [[ $words[CURRENT] == --preset=* || $words[CURRENT-1] == --preset ]]; then
    compset -P --preset=
    compadd ${PRESETS}
  elif compset -P '--*='; then
    _files
  elif [[ $words[CURRENT] == -* ]]; then
    compadd -- \${(f)"$($words[1] $words[2] --help 2>/dev/null | ${FLAGS})"}
  else
    _files
  fi
}
compdef _loam loam`;
}

function fish(subcommands: Subcommands): string {
  return `function __loam_flags
    set -l words (commandline -opc)
    $words[1] $words[2] --help 2>/dev/null | ${FLAGS}
end
${
    subcommands.map(([name, what]) => `complete -c loam -n __fish_use_subcommand -f -a ${name} -d '${what}'`)
      .join("\n")
  }
complete -c loam -n '__fish_seen_subcommand_from completions' -f -a '${KNOWN.join(" ")}'
complete -c loam -n '__fish_seen_subcommand_from train' -l preset -x -a '${PRESETS}'
complete -c loam -n 'not __fish_use_subcommand; and string match -qr -- "^-[^=]*\\$" (commandline -ct)' -f -a '(__loam_flags)'`;
}
