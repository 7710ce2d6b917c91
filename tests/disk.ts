// A disk below a directory, as a process that is killed or a machine that loses power may leave it: while some work is done, all
// its changes are watched (base/files.ts), and before each of them it is worked out what the next start could find.
import { createHash } from "node:crypto";
import { dirname } from "node:path";
import { type Change, watchChanges } from "../base/files.ts";
import { freshPath } from "./testing.ts";

/** Contents by path, "" being the directory itself; null for a directory. */
export type Files = Map<string, Uint8Array | null>;

/**
 * What a start may find, and how that came about: "after 12 changes, before rename a -> b: ...". said: what the work had said by
 * then that it had done.
 */
export type State = { files: Files; story: string; said: number };

type File = { kind: "file"; synced: Uint8Array; now: Uint8Array | undefined }; // now: undefined = to be read
type Directory = { kind: "directory"; now: Map<string, Node>; durable: Map<string, Node> };
type Node = File | Directory;
type Entry = { directory: Directory; name: string };
type Move = { from?: Entry; to?: Entry & { node: Node } }; // of a name, that may not be on the disk yet

const NOTHING = new Uint8Array();

/**
 * Does some work, and returns each different state in which the directory could be found if it ended at any moment. A process that
 * is killed leaves what it has done. A machine that loses power may have lost the data of files that were not synced, or names in
 * directories that were not, in all of them or in one; what was moved is in one of the two places. Every write is two.
 *
 * @param said How much of it the work has said to be done, which no end may undo.
 */
export async function crashes(
  root: string,
  work: () => unknown,
  said: () => number = () => 0,
): Promise<{ changes: number; states: State[] }> {
  const disk = new Disk(root), states = new Map<string, State>();
  let changes = 0, halved = "";
  const look = (before: string) => {
    for (const [how, files] of disk.states()) {
      const key = keyOf(files),
        known = states.get(key),
        story = `after ${changes} changes, ${before}: ${how}`;
      if (known && known.said >= said()) continue;
      states.set(key, { files, story, said: said() });
    }
  };
  {
    using _ = watchChanges((change) => {
      if (change.path !== root && !change.path.startsWith(`${root}/`)) return;
      look(describe(change, root));
      disk.apply(change);
      changes++;
      if (change.kind !== "write" || change.bytes! < 2 || halved === change.path) return void (halved = "");
      halved = change.path;
      return change.bytes! >> 1;
    });
    await work();
  }
  look("at the end");
  return { changes, states: [...states.values()] };
}

/** Does some work without the time of syncs. */
export async function unsynced<T>(work: () => T): Promise<Awaited<T>> {
  using _ = watchChanges(() => {});
  return await work();
}

/** What went wrong at a change: errors as the operating system reports them. */
export const ERRORS = {
  full: "No space left on device (os error 28)",
  broken: "Input/output error (os error 5)",
};

/** Does some work in which the system refuses the change of that number, from 1, or all from there on that take space. */
export async function failing(
  number: number,
  error: keyof typeof ERRORS,
  work: () => unknown,
): Promise<{ failed: unknown; reached: boolean }> {
  let changes = 0;
  using _ = watchChanges(({ kind }) => {
    const takesSpace = kind === "create" || kind === "write" || kind === "mkdir" || kind === "truncate";
    changes++;
    if (error === "full" ? changes >= number && takesSpace : changes === number) {
      throw new Error(ERRORS[error]);
    }
  });
  try {
    await work();
    return { failed: undefined, reached: changes >= number };
  } catch (failed) {
    return { failed, reached: true };
  }
}

/** Does something in each state, whose story an error tells. */
export async function inEach(states: State[], check: (root: string, state: State) => unknown): Promise<void> {
  for (const state of states) {
    const { files, story } = state, root = freshPath();
    restore(files, root);
    try {
      await unsynced(() => check(root, state));
    } catch (error) {
      throw new Error(`${story}\n${(error as Error).message}`, { cause: error });
    }
    Deno.removeSync(root, { recursive: true });
  }
}

/** Writes a state into a directory, which is made. What is temporary there is of another process. */
function restore(files: Files, root: string): void {
  for (const [name, content] of files) {
    const path = name.replace(`.${Deno.pid}.tmp`, ".1.tmp");
    if (content === null) Deno.mkdirSync(root + path, { recursive: true });
    else Deno.writeFileSync(root + path, content);
  }
}

function describe({ kind, path, to }: Change, root: string): string {
  const name = (path: string) => path.slice(root.length) || "/";
  return `before ${kind} ${name(path)}${to ? ` -> ${name(to)}` : ""}`;
}

const keys = new WeakMap<Uint8Array, string>();

function keyOf(files: Files): string {
  const hash = createHash("sha1");
  for (const [path, content] of files) hash.update(`${path}\0${content ? sha1(content) : ""}\0`);
  return hash.digest("hex");
}

function sha1(content: Uint8Array): string {
  if (!keys.has(content)) keys.set(content, createHash("sha1").update(content).digest("hex"));
  return keys.get(content)!;
}

/** What is below a directory, and what of it is on the disk. */
class Disk {
  readonly #root: Directory;
  readonly #path: string;
  #pending: Move[] = [];

  constructor(path: string) {
    this.#path = path;
    this.#root = load(path) ?? { kind: "directory", now: new Map(), durable: new Map() };
  }

  /** Takes note of a change that is made now. */
  apply({ kind, path, to }: Change): void {
    const at = this.#entry(path), node = this.#node(path);
    if (kind === "write" || kind === "truncate") (node as File).now = undefined;
    if (kind === "sync") (node as File).synced = this.#content(node as File, path);
    if (kind === "create" && node?.kind === "file") Object.assign(node, { synced: NOTHING, now: undefined });
    else if (kind === "create") {
      this.#move({ to: { ...at!, node: { kind: "file", synced: NOTHING, now: undefined } } });
    }
    if (kind === "mkdir") this.#makeDirectories(path);
    if (kind === "remove" && at) this.#move({ from: at });
    if (kind === "rename") this.#move({ from: at!, to: { ...this.#entry(to!)!, node: node! } });
    if (kind === "syncDirectory") {
      const isOf = ({ from, to }: Move) => from?.directory === node || to?.directory === node;
      for (const move of this.#pending.filter(isOf)) perform(move, ({ durable }) => durable);
      this.#pending = this.#pending.filter((move) => !isOf(move));
    }
  }

  /** Each state in which it could be found now, and why. */
  *states(): Generator<[how: string, Files]> {
    this.#readAll(this.#root, this.#path);
    yield ["killed", this.#files([], false)];
    const of = ({ from, to }: Move) => to?.directory ?? from!.directory; // a move is on the disk with its new name
    const directories = [...new Set(this.#pending.map(of))];
    yield ["no power, data lost", this.#files([], true)];
    yield ["no power, names lost", this.#files(directories, false)];
    yield ["no power, data and names lost", this.#files(directories, true)];
    if (directories.length < 2) return;
    for (const directory of directories) {
      yield ["no power, names in one directory lost", this.#files([directory], true)];
      const others = directories.filter((other) => other !== directory);
      yield ["no power, names in all directories but one lost", this.#files(others, true)];
    }
  }

  /** The files where moves in some directories are lost, and maybe data that was not synced. */
  #files(lost: Directory[], dataLost: boolean): Files {
    const names = new Map<Directory, Map<string, Node>>();
    const of = (directory: Directory) => {
      if (!names.has(directory)) names.set(directory, new Map(directory.durable));
      return names.get(directory)!;
    };
    for (const move of this.#pending) {
      if (!lost.includes(move.to?.directory ?? move.from!.directory)) perform(move, of);
    }
    const files: Files = new Map();
    const visit = (node: Node, path: string) => {
      if (node.kind === "file") return void files.set(path, dataLost ? node.synced : node.now ?? node.synced);
      files.set(path, null);
      for (const [name, child] of [...of(node)].sort(([a], [b]) => a < b ? -1 : 1)) {
        visit(child, `${path}/${name}`);
      }
    };
    visit(this.#root, "");
    return files;
  }

  #move(move: Move): void {
    perform(move, ({ now }) => now);
    this.#pending.push(move);
  }

  #makeDirectories(path: string): void {
    if (this.#node(path)) return;
    this.#makeDirectories(dirname(path));
    this.#move({
      to: { ...this.#entry(path)!, node: { kind: "directory", now: new Map(), durable: new Map() } },
    });
  }

  #node(path: string): Node | undefined {
    let node: Node | undefined = this.#root;
    for (const name of path.slice(this.#path.length).split("/").filter((name) => name !== "")) {
      node = node?.kind === "directory" ? node.now.get(name) : undefined;
    }
    return node;
  }

  #entry(path: string): Entry | undefined {
    const directory = this.#node(dirname(path)), name = path.slice(path.lastIndexOf("/") + 1);
    return path !== this.#path && directory?.kind === "directory" ? { directory, name } : undefined;
  }

  #readAll(node: Node, path: string): void {
    if (node.kind === "file") this.#content(node, path);
    else for (const [name, child] of node.now) this.#readAll(child, `${path}/${name}`);
  }

  #content(file: File, path: string): Uint8Array {
    return file.now ??= Deno.readFileSync(path);
  }
}

function perform({ from, to }: Move, of: (directory: Directory) => Map<string, Node>): void {
  if (from) of(from.directory).delete(from.name);
  if (to) of(to.directory).set(to.name, to.node);
}

/** What is there is on the disk. */
function load(path: string): Directory | undefined {
  try {
    Deno.statSync(path);
  } catch {
    return undefined;
  }
  const entries = new Map<string, Node>();
  for (const { name, isDirectory } of Deno.readDirSync(path)) {
    if (isDirectory) entries.set(name, load(`${path}/${name}`)!);
    else {
      const content = Deno.readFileSync(`${path}/${name}`);
      entries.set(name, { kind: "file", synced: content, now: content });
    }
  }
  return { kind: "directory", now: entries, durable: new Map(entries) };
}
