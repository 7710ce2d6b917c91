// Writes docs/reference.md, the flags of every command and the fields of every file, and docs/architecture.svg, the parts of the
// program and what they import, from the source. A test compares both with the source.
import { runMain } from "../base/errors.ts";
import { writeAtomic } from "../base/files.ts";
import { literalOf, readFlags } from "../base/flags.ts";

const ROOT = new URL("../", import.meta.url);
const read = (path: string) => Deno.readTextFileSync(new URL(path, ROOT));

/** Where the variables of a command stand, if not in the file that its task runs. */
const ELSEWHERE: Record<string, string> = {
  "data/prepare.ts": "data/prepare/options.ts",
  "data/train_tokenizer.ts": "data/train_tokenizer/train_options.ts",
  "serve.ts": "serve/options.ts",
};

/** Commands without an entry of their own. */
const NO_ENTRY = /:|^(demo-corpus|doctor|docs|test|ok|bench)$/;

/** Files that others may want to read: name, what it is, and the types that its fields are declared by. */
const FILES: [name: string, what: string, types: [file: string, type: string][]][] = [
  ["metrics.jsonl", "One object a line, one line a step.", [["runtime/metrics.ts", "StepMetrics"]]],
  ["run.json", "What trains the run now, or trained it last.", [
    ["runtime/metrics.ts", "RunFacts"],
    ["runtime/metrics.ts", "RunEnd"],
  ]],
  ["trainer_state.json", "Of a checkpoint: where its run stood.", [[
    "runtime/trainer_state.ts",
    "TrainerState",
  ]]],
  ["meta.json", "Of a dataset: what its shards hold, and all that determines it.", [
    ["data/meta.ts", "Recipe"],
    ["data/meta.ts", "Meta"],
    ["data/meta.ts", "SplitSize"],
  ]],
];

/** The text of docs/reference.md. */
export function reference(): string {
  const { tasks }: { tasks: Record<string, { description: string; command: string }> } = JSON.parse(
    read("deno.json"),
  );
  const commands = Object.entries(tasks).filter(([name]) => !NO_ENTRY.test(name)).map(
    ([name, { description, command }]) => {
      const file = command.split(" ").at(-1)!, lines = variables(read(ELSEWHERE[file] ?? file));
      return [`### ${name}`, "", `${description}.`, "", ...table("flag", "default", lines)].join("\n");
    },
  );
  const files = FILES.map(([name, what, types]) => {
    const fields = types.map(([file, type]) => {
      const rows = fieldsOf(read(file), type);
      return [...types.length > 1 ? [`\`${type}\``, ""] : [], ...table("field", "type", rows)].join("\n");
    });
    return [`### ${name}`, "", what, "", fields.join("\n\n")].join("\n");
  });
  return [
    "# Reference",
    "",
    "Made from the source by `deno task docs`. What commands do together: [commands.md](commands.md).",
    "",
    "## Commands",
    "",
    "A flag is `--name=value` or `--name value`; `--name` alone where it is true or false. `--help` prints the",
    "same; that of `train` with the values of the preset that will run.",
    "",
    commands.join("\n\n"),
    "",
    "## Files",
    "",
    files.join("\n\n"),
    "",
  ].join("\n");
}

type Row = { name: string; value: string; comment: string } | { heading: string };

/** The variables that a module begins with, and the headings between them. */
function variables(source: string): Row[] {
  const rows: Row[] = [];
  for (const line of literalOf(source).split("\n")) {
    const [, name, value = "", comment = ""] = /^ *(\w+): (.*?),(?: \/\/ (.*))?$/.exec(line) ?? [];
    const more = line.replace(/^ *\/\/ /, ""), last = rows.at(-1);
    if (name !== undefined) rows.push({ name: `--${name}`, value: plain(value), comment });
    else if (line === "") rows.push({ heading: "" });
    else if (last && "name" in last) last.comment += ` ${more}`;
    else if (last) last.heading = last.heading === "" ? more : `${last.heading} ${more}`;
  }
  return rows;
}

/** A default as a command line would have it. */
function plain(value: string): string {
  const text = value.replace(/ as .*/, "").replace(/(?<=\d)_(?=\d)/g, "");
  return ['""', "[]", "null"].includes(text) || text.startsWith("navigator.")
    ? ""
    : text.replace(/^"(.*)"$/, "$1");
}

/** The fields of an object type, with the comment behind or before each. */
function fieldsOf(source: string, type: string): Row[] {
  const body = new RegExp(`^(?:export )?type ${type} = (?:\\w+ & )?\\{\\n([^]*?)\\n\\};$`, "m").exec(source)
    ?.[1];
  if (body === undefined) throw new Error(`There is no type ${type} of fields alone`);
  let before = "";
  return body.split("\n").flatMap((line) => {
    const [, said] = /^ *\/\*\* (.*) \*\/$/.exec(line) ?? [];
    if (said !== undefined) before = said;
    const [, name, optional, value, comment] = /^ *(\w+)(\??): (.*?);(?: \/\/ (.*))?$/.exec(line) ?? [];
    if (name === undefined) return [];
    const row = { name, value: value! + (optional ? ", or left out" : ""), comment: comment ?? before };
    before = "";
    return [row];
  });
}

/** Rows as Markdown tables, a heading between two. */
function table(first: string, second: string, rows: Row[]): string[] {
  const lines: string[] = [], cell = (text: string) => text.replaceAll("|", "\\|");
  let isOpen = false;
  for (const row of rows) {
    if ("heading" in row) {
      if (row.heading !== "") lines.push("", `**${row.heading.replaceAll("*", "\\*")}**`);
      isOpen = false;
      continue;
    }
    if (!isOpen) lines.push(...lines.length ? [""] : [], `| ${first} | ${second} | |`, "| --- | --- | --- |");
    isOpen = true;
    const value = row.value === "" ? "" : `\`${cell(row.value)}\``;
    lines.push(`| \`${row.name}\` | ${value} | ${cell(row.comment)} |`);
  }
  return lines;
}

// ---- the picture

/** The column of each part, and what it holds. What it imports is read from its files, and says how high it stands. */
const PARTS: Record<string, [column: number, what: string]> = {
  "train.ts": [0, "variables, then the loop"],
  "serve.ts": [1, "dashboard, /stats, completions"],
  "mod.ts": [2, "the public interface"],
  serve: [1, "the server's parts, its page"],
  model: [1, "llama.ts, generate, checkpoints"],
  dist: [1, "ranks over MPI and NCCL"],
  data: [0, "prepare, tokenizers, loader"],
  runtime: [1, "tensor, tape, ops, optimizer"],
  ffi: [1, "one typed wrapper a function"],
  base: [1, "errors, files, flags"],
};

/** The compiled library, which ffi opens: beside base and below. */
const LIBRARY: [name: string, what: string][] = [
  ["kernels.h", "the contract, in C"],
  ["kernels.cpp, kernels.cu", "the same for CPUs and for GPUs"],
];

const WIDTH = 250, HEIGHT = 58, GAP_X = 50, GAP_Y = 44, MARGIN = 20;

/** Parts by what they import, whatever way round: the picture leaves out an arrow that two others say. */
export function partImports(): Map<string, Set<string>> {
  const parts = Object.keys(PARTS);
  const all = new Map(parts.map((part) => {
    const files = part.endsWith(".ts") ? [part] : sources(part);
    const targets = files.flatMap((file) =>
      Array.from(read(file).matchAll(/(?:from |import\()"(\.[^"]+\.ts)"/g), ([, specifier]) => {
        const path = new URL(specifier!, new URL(file, ROOT)).href.slice(ROOT.href.length);
        return path.includes("/") ? path.slice(0, path.indexOf("/")) : path;
      })
    );
    return [part, new Set(targets.filter((to) => to !== part && parts.includes(to)))];
  }));
  const reaches = (from: string, to: string): boolean =>
    [...all.get(from)!].some((next) => next === to || reaches(next, to));
  return new Map(parts.map((part) => {
    const direct = [...all.get(part)!];
    return [part, new Set(direct.filter((to) => !direct.some((via) => via !== to && reaches(via, to))))];
  }));
}

/** Paths of the TypeScript files below a folder that are no tests. */
function sources(folder: string): string[] {
  return Array.from(Deno.readDirSync(new URL(folder, ROOT))).flatMap(({ name, isDirectory }) => {
    const path = `${folder}/${name}`;
    if (isDirectory) return sources(path);
    return name.endsWith(".ts") && !/(_test|^testing\w*)\.ts$/.test(name) ? [path] : [];
  });
}

/** The text of docs/architecture.svg: a box for each part, above all that it imports. */
export function architecture(): string {
  const imports = partImports();
  const level = (part: string): number => 1 + Math.max(-1, ...[...imports.get(part)!].map(level));
  const top = Math.max(...[...imports.keys()].map(level));
  const place = (column: number, row: number) => ({
    x: MARGIN + column * (WIDTH + GAP_X),
    y: MARGIN + row * (HEIGHT + GAP_Y),
  });
  const places = new Map(
    Object.entries(PARTS).map(([part, [column]]) => [part, place(column, top - level(part))]),
  );
  LIBRARY.forEach(([name], i) => places.set(name, place(2, top + i)));
  const arrow = (from: string, to: string) => {
    const a = places.get(from)!, b = places.get(to)!, isLeft = b.x < a.x;
    const [ax, bx] = [a.x + WIDTH / 2, b.x + WIDTH / 2], ay = a.y + HEIGHT / 2;
    if (a.x === b.x) return `M${ax},${a.y + HEIGHT} V${b.y - 2}`;
    if (PARTS[to]?.[0] === 1) {
      return `M${ax},${a.y + HEIGHT} V${b.y + HEIGHT / 2} H${isLeft ? b.x + WIDTH + 2 : b.x - 2}`;
    }
    return `M${isLeft ? a.x : a.x + WIDTH},${ay} H${bx} V${b.y - 2}`;
  };
  const box = (name: string, what: string, kind: string) => {
    const { x, y } = places.get(name)!, middle = x + WIDTH / 2;
    return `<rect class="${kind}" x="${x}" y="${y}" width="${WIDTH}" height="${HEIGHT}" rx="6"/>` +
      `<text class="name" x="${middle}" y="${y + 24}">${name}${name.includes(".") ? "" : "/"}</text>` +
      `<text class="what" x="${middle}" y="${y + 44}">${what}</text>`;
  };
  const [width, height] = [
    2 * MARGIN + 3 * WIDTH + 2 * GAP_X,
    2 * MARGIN + (top + 2) * HEIGHT + (top + 1) * GAP_Y,
  ];
  const pairs = [...imports].flatMap(([from, to]) => [...to].map((target) => [from, target] as const));
  const label = "The parts of loam, each above what it imports";
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" role="img" aria-label="${label}">`,
    `<style>${STYLE}</style>`,
    `<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">`,
    `<path class="head" d="M0,0 L8,4 L0,8 z"/></marker>`,
    ...[...pairs, ["ffi", LIBRARY[0]![0]] as const, [LIBRARY[0]![0], LIBRARY[1]![0]] as const].map(
      ([from, to]) => `<path class="arrow" d="${arrow(from, to)}"/>`,
    ),
    ...Object.entries(PARTS).map(([name, [, what]]) => box(name, what, "part")),
    ...LIBRARY.map(([name, what]) => box(name, what, "library")),
    "</svg>",
    "",
  ].join("\n");
}

const STYLE =
  "text{font-family:system-ui,sans-serif;text-anchor:middle;fill:#1c2430}.name{font-size:16px;font-weight:600}" +
  ".what{font-size:13px}.part{fill:#eef3fb;stroke:#5b7db1}.library{fill:#fbf3e6;stroke:#b58a3c}" +
  ".arrow{stroke:#7a8699;stroke-width:1.5;fill:none;marker-end:url(#head)}.head{fill:#7a8699}" +
  "@media(prefers-color-scheme:dark){text{fill:#e6ebf2}.part{fill:#1d2a3d}.library{fill:#3a2d16}}";

function main(args: string[]): void {
  if (args.includes("--help")) {
    return console.log("Write docs/reference.md and docs/architecture.svg from the source");
  }
  readFlags(args, {}); // there are none
  writeAtomic(new URL("docs/reference.md", ROOT).pathname, reference());
  writeAtomic(new URL("docs/architecture.svg", ROOT).pathname, architecture());
}

if (import.meta.main) await runMain(main);
