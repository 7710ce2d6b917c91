// Opens libloam_*.so and turns its status codes into errors. There is one open library per process; it is never closed,
// because closing one while a call is under way crashes the process.
import { asTyped } from "../base/command.ts";
import { KernelError, UserError } from "../base/errors.ts";
import { type Address, FUNCTIONS, symbols } from "./symbols.ts";

/** Where kernels run. "plan" computes nothing: it hands out addresses and counts bytes, for `--dry_run`. */
export type DeviceName = "cuda" | "cpu" | "emu" | "plan";

/** What device_info() reports about the open device. */
export type DeviceInfo = {
  library: DeviceName;
  name: string;
  act: "f32" | "bf16"; // type of weights and activations
  isa?: string;
  isa_best?: string;
  threads?: number;
  blas?: string;
  arch?: string;
  bf16_gemm?: boolean; // of a CPU: inputs of matrix products are rounded to bfloat16
  attention?: string; // of a GPU: which kernels, and why
  uuid?: string; // of a GPU
};

/** How to open a device. */
export type OpenOptions = {
  index?: number; // which GPU
  threads?: number; // CPU threads, 0 = all
  bf16_gemm?: boolean | "auto"; // CPU: round the inputs of matrix products to bfloat16; auto = where it has a unit for it
  blas?: string; // CPU: auto where it is not given, "" = the first found; see kernels.h
  attention?: string; // GPU: portable, hopper, "" or auto = the faster that is right; see kernels.h
  act?: "f32" | "bf16"; // plan: the type of weights and activations to count with
};

/** LOAM_ABI_VERSION in kernels.h; a library with another one does not open. */
export const ABI_VERSION = 10;
/** Element types in kernels.h: float32. */
export const F32 = 0;
/** bfloat16. */
export const BF16 = 1;
/** Kinds of unary_forward(), which kernels.h defines. */
export const UNARY = {
  scale: 0,
  gelu: 1,
  gelu_tanh: 2,
  relu_squared: 3,
  sigmoid: 4,
  softcap: 5,
} as const;
const AUTO = 2; // LOAM_AUTO in kernels.h
const BAD_FILE = 2; // LOAM_BAD_FILE in kernels.h
/** Places in the control block of a step, in floats: CONTROL_* in kernels.h, where each is explained. */
export const CONTROL = {
  learning_rate: 0,
  loss: 1,
  grad_norm: 2,
  grad_scale: 3,
  updates: 4,
  skipped: 5,
  skipped_row: 6,
  stopping: 9,
  size: 16,
} as const;

/** The functions of a library, as ffi/symbols.ts lists them. */
export type Symbols = Deno.DynamicLibrary<typeof symbols>["symbols"];

/** The functions of the open library. Throws by name until open() was called. */
export let s: Symbols = new Proxy({} as Symbols, {
  get: (_, name) => {
    throw new Error(`internal: ${String(name)} was called before open()`);
  },
});
/** What is open; name is "none" until open() was called. */
export let device: DeviceInfo = { library: "plan", name: "none", act: "f32" };

const LIBRARY_SUFFIX = Deno.build.os === "darwin" ? "dylib" : Deno.build.os === "windows" ? "dll" : "so";

/** Where `deno task build` puts a library: "cpu", "cpu_avx2", "cpu_avx512", "cuda", "emu". */
export function libraryUrl(variant: string): URL {
  return new URL(`../build/libloam_${variant}.${LIBRARY_SUFFIX}`, import.meta.url);
}

/** The path of a file as the system spells it: in a URL a space is %20. */
export function pathOf(file: URL): string {
  return decodeURIComponent(file.pathname);
}

/** Whether a variant is built. */
export function libraryExists(variant: string): boolean {
  try {
    return Deno.statSync(libraryUrl(variant)).isFile;
  } catch {
    return false;
  }
}

/**
 * Opens a device and makes its functions current. On the CPU it takes the variant for the best instruction set that the
 * processor has (LOAM_ISA=portable|avx2|avx512 overrides). Throws UserError when the library is not built or does not load,
 * KernelError when the device does not answer.
 */
export function open(name: DeviceName, options: OpenOptions = {}): DeviceInfo {
  if (name === "plan") return openPlan(options.act ?? "f32");
  limitSpinning();
  s = load(name);
  if (name === "cpu") loadVariant(environment("LOAM_ISA"));
  const { blas: asked = "auto" } = options;
  const blas = ["", "auto"].includes(asked) ? environment("LOAM_BLAS") || asked : asked;
  const attention = options.attention || environment("LOAM_ATTENTION");
  check(
    s.device_open(
      options.index ?? 0,
      options.threads ?? 0,
      options.bf16_gemm === "auto" ? AUTO : options.bf16_gemm ? 1 : 0,
      cString(blas),
      cString(attention),
    ),
  );
  device = readInfo();
  return device;
}

/** Goes on from the portable CPU library, which runs anywhere, to the one for the asked or the best instruction set. */
function loadVariant(asked: string): void {
  const { isa, isa_best = "portable" } = readInfo(), known = ["portable", "avx2", "avx512"]; // each has those before it
  if (asked && !known.includes(asked)) {
    throw new UserError(
      `Cannot open the CPU library for LOAM_ISA=${asked}: it must be portable, avx2 or avx512`,
    );
  }
  if (known.indexOf(asked) > known.indexOf(isa_best)) {
    throw new UserError(`Cannot open the CPU library for LOAM_ISA=${asked}: this processor has ${isa_best}`);
  }
  const wanted = asked || isa_best;
  if (wanted !== isa && (asked || libraryExists(`cpu_${wanted}`))) s = load(`cpu_${wanted}`);
}

/**
 * Has waiting OpenMP threads sleep after about 0.3 ms. By default GCC's runtime spins for some 10 ms, and then training next
 * to any other busy process is 10 times slower. It reads this variable when the first library is loaded.
 */
function limitSpinning(): void {
  if (!environment("GOMP_SPINCOUNT") && !environment("OMP_WAIT_POLICY")) {
    Deno.env.set("GOMP_SPINCOUNT", "5000");
  }
}

/**
 * The device to use when the user named none: cuda if its library is built and the GPU of this index answers, else cpu. The
 * reason is there to be printed.
 */
export function chooseDevice(index = 0): { name: DeviceName; reason: string } {
  if (!libraryExists("cuda")) return { name: "cpu", reason: "the CUDA library is not built" };
  try {
    // A process has one GPU: another index could not be opened after this. portable: nothing to check yet.
    open("cuda", { index, attention: "portable" });
    return { name: "cuda", reason: device.name };
  } catch (error) {
    const { message } = error as Error, isThere = !/ no NVIDIA (driver|GPU) /.test(message);
    const noGpu = asTyped("the CUDA library opens no GPU, see deno task doctor");
    return { name: "cpu", reason: error instanceof KernelError && !isThere ? noGpu : message };
  }
}

const loaded = new Map<string, Symbols>(); // by variant: a library stays open

function load(variant: string): Symbols {
  const known = loaded.get(variant);
  if (known) return known;
  const url = libraryUrl(variant);
  if (!libraryExists(variant)) throw new UserError(`Cannot open ${pathOf(url)}: ${whyMissing(variant)}`);
  let library: Symbols;
  try {
    library = Deno.dlopen(url, symbols).symbols;
  } catch (error) {
    if (error instanceof Deno.errors.NotCapable) throw error;
    const cause = (error as Error).message.split(": ").at(-1);
    throw new UserError(`Cannot load ${pathOf(url)}: ${cause}; build it again: deno task build --force`);
  }
  const version = library.abi_version();
  if (version !== ABI_VERSION) {
    throw new UserError(
      `Cannot use ${
        pathOf(url)
      }: its interface is version ${version}, this program wants ${ABI_VERSION}; run: deno task build --force`,
    );
  }
  loaded.set(variant, library);
  return library;
}

/** Opens the portable CPU library beside the open one, to compare with; undefined where it is not built. */
export function openCpuBeside(): Symbols | undefined {
  if (!libraryExists("cpu")) return undefined;
  const cpu = load("cpu");
  check(cpu.device_open(0, 1, 0, cString("builtin"), cString("")), cpu);
  return cpu;
}

function whyMissing(variant: string): string {
  if (Deno.build.standalone) {
    return "it is not in this program; where it is built, make one that holds it: deno task compile";
  }
  const needs = variant === "cuda" ? " (it needs nvcc and cuBLASLt; see deno task doctor)" : "";
  return `it is not built; run: deno task build${needs}`;
}

/** Throws the library's text for the first failure, that of the open library unless said, if code is not 0. */
export function check(code: number, library?: Symbols): void {
  if (code !== 0) throw new KernelError(lastError(library) || `internal: code ${code} without a text`);
}

/** The library's text for its first failure since the last time it was asked. */
function lastError(library: Symbols = s): string {
  const text = new Uint8Array(5120);
  library.last_error(text, text.length);
  return fromCString(text);
}

function readInfo(): DeviceInfo {
  const text = new Uint8Array(4096);
  check(s.device_info(text, text.length));
  return JSON.parse(fromCString(text)) as DeviceInfo;
}

/**
 * FLOP/s that no product on the open device exceeds, measured on a CPU in about 40 ms, and what was measured; 0 where there
 * is nothing to measure.
 */
export function measurePeak(): { flops: number; how: string } {
  const flops = new Float64Array(1), how = new Uint8Array(256);
  check(s.device_peak(flops, how, how.length));
  return { flops: flops[0]!, how: fromCString(how) };
}

/** The cudaStream_t that work is queued on; 0 on a CPU. */
export function deviceStream(): bigint {
  const stream = new BigUint64Array(1);
  check(s.device_stream(stream));
  return stream[0]!;
}

/** A second stream, for collectives that go on beside kernels; 0 on a CPU. See sideWait(), sideMark() and sideJoin(). */
export function sideStream(): bigint {
  const stream = new BigUint64Array(1);
  check(s.side_stream(stream));
  return stream[0]!;
}

/** Queues a mark, of a number from 1 to 16383: a place in the stream that sideWait() waits for, and markMs() knows the time of. */
export function mark(at: number): void {
  check(s.mark(at));
}

/** Milliseconds from one mark to another, which work must have passed. */
export function markMs(from: number, to: number): number {
  const ms = new Float32Array(1);
  check(s.mark_ms(ms, from, to));
  return ms[0]!;
}

/** Lets the second stream wait for a mark. */
export function sideWait(at: number): void {
  check(s.side_wait(at));
}

/** Queues a mark in the second stream, which sideJoin() waits for. */
export function sideMark(at: number): void {
  check(s.side_mark(at));
}

/** Lets what is queued from here on wait for a mark of the second stream. */
export function sideJoin(at: number): void {
  check(s.side_join(at));
}

/** Waits for all queued work on another thread: timers, signals and servers of this process are served meanwhile. */
export async function synchronize(): Promise<void> {
  check(await s.synchronize_async());
}

/** Waits for all queued work on this thread. */
export function synchronizeNow(): void {
  check(s.synchronize());
}

/**
 * Ends this process with an exit code and a line on stderr unless it is called again within so many ms; 0 = never. For calls that
 * may wait for ever on this thread, on which then no timer runs.
 */
export function endAfter(ms: number, code: number, line: string): void {
  check(s.end_after(BigInt(Math.ceil(ms)), code, cString(`${line.slice(0, 900)}\n`)));
}

const waiting = new WeakMap<Symbols, Symbols>(); // what each was made of

/**
 * From here on each function waits for what it has queued, or none does any more: so that a GPU that fails is told of the
 * function that did it, not of one called later. Such a one throws KernelError.
 */
export function waitForEach(on: boolean): void {
  const library = waiting.get(s) ?? s;
  s = library;
  if (!on) return;
  const functions: Record<string, unknown> = { ...library };
  for (const name of FUNCTIONS.filter((name) => name !== "last_error")) {
    const f = library[name as keyof Symbols] as (...values: unknown[]) => number;
    functions[name] = (...values: unknown[]) => {
      const code = f(...values);
      if (code !== 0 || library.synchronize() === 0) return code;
      const text = lastError(library),
        seen = "synchronize: the GPU failed in this op or one queued before it";
      throw new KernelError(text.replace(seen, `${name}: the GPU failed in this op`));
    };
  }
  s = functions as Symbols;
  waiting.set(s, library);
}

// ---- memory

/** Device memory filled with zeros, aligned to 256 bytes. Throws KernelError when there is not enough. */
export function allocate(bytes: number): Address {
  const address = new BigUint64Array(1);
  check(s.mem_alloc(address, BigInt(bytes)));
  return address[0]!;
}

/** Gives memory of allocate() back, once queued work is done. */
export function free(address: Address): void {
  check(s.mem_free(address));
}

/** Host memory that the device copies from without staging. */
export function allocateHost(bytes: number): Address {
  const address = new BigUint64Array(1);
  check(s.host_alloc(address, BigInt(bytes)));
  return address[0]!;
}

/** Bytes of device memory: allocated now, the peak of that, free and total on the device. */
export function memoryUse(): { now: number; peak: number; free: number; total: number } {
  const bytes = new BigInt64Array(4);
  check(s.device_memory(bytes));
  const [now, peak, free, total] = Array.from(bytes, Number) as [number, number, number, number];
  return { now, peak, free, total };
}

/**
 * What this process may use of the machine: bytes of memory left and in all, what sets that limit (the machine or a cgroup),
 * and CPUs by the quotas of its cgroups, 0 where there is none. root: a directory to read /proc and cgroups below, for tests.
 */
export function hostLimits(root = ""): { free: number; total: number; cpus: number; source: string } {
  const limits = new BigInt64Array(3), source = new Uint8Array(4096);
  check(s.host_limits(limits, source, source.length, cString(root)));
  const [free, total, cpus] = Array.from(limits, Number) as [number, number, number];
  return { free, total, cpus, source: fromCString(source) };
}

/**
 * Whether this process was begun with SIGHUP ignored, as nohup does it. The C library that the open one is linked with says so:
 * Deno does not, and lets only a program with all permissions read /proc. False where there is none, as on Windows.
 */
export function ignoresHangup(): boolean {
  if (device.library === "plan" || Deno.build.os === "windows") return false;
  const SIGHUP = 1, SIG_IGN = 1n, action = new BigUint64Array(32); // a struct sigaction begins with its handler, and is shorter
  const c = Deno.dlopen(libraryUrl(device.library), {
    sigaction: { parameters: ["i32", "usize", "buffer"], result: "i32" },
  });
  const code = c.symbols.sigaction(SIGHUP, 0n, action);
  c.close();
  return code === 0 && action[0] === SIG_IGN;
}

/** A typed array whose bytes are copied to or from the device. */
export type Bytes =
  | Uint8Array<ArrayBuffer>
  | Float32Array<ArrayBuffer>
  | Int32Array<ArrayBuffer>
  | Float64Array<ArrayBuffer>;

/** Copies a typed array to the device; the array may be changed when this returns. */
export function copyToDevice(dst: Address, src: Bytes): void {
  check(s.copy_to_device(dst, src, BigInt(src.byteLength)));
}

/** Fills a typed array from the device, after all queued work. */
export function copyToHost(dst: Bytes, src: Address): void {
  check(s.copy_to_host(dst, src, BigInt(dst.byteLength)));
}

/** Queues a copy of at most 64 KB for readSnapshot(); two may wait to be read. */
export function snapshot(src: Address, bytes: number): void {
  check(s.snapshot(src, BigInt(bytes)));
}

/** Fills a typed array from the oldest snapshot. Waits for it on another thread, but not for what was queued behind it. */
export async function readSnapshot(dst: Bytes): Promise<void> {
  check(await s.snapshot_read_async(dst, BigInt(dst.byteLength)));
}

/** Index of the first element that is NaN or infinite, or -1. type is F32 or BF16. */
export function findNonFinite(x: Address, type: number, n: number): number {
  const index = new BigInt64Array(1);
  check(s.find_nonfinite(index, x, type, BigInt(n)));
  return Number(index[0]);
}

// ---- matrix products

/** The choices of a GPU so far, a line for each shape; none on a CPU: gemm_choices() in kernels.h. */
export function gemmChoices(): string[] {
  const lines = new Uint8Array(1 << 20);
  check(s.gemm_choices(lines, lines.length));
  return fromCString(lines).split("\n").filter(Boolean);
}

/** Takes such lines where nothing is chosen yet, and returns how many it refuses. times: whether other shapes are timed. */
export function chooseGemms(lines: readonly string[], times: boolean): number {
  const refused = new Int32Array(1);
  check(s.gemm_choose(refused, cString(lines.join("\n")), times ? 1 : 0));
  return refused[0]!;
}

// ---- sampling

/** How a token is chosen. */
export type Sampling = {
  temperature: number; // 0 = always the likeliest token
  top_k: number; // of the k likeliest only; 0 = all
  top_p: number; // of these only so many that they make up this probability together; 1 = all
};

/**
 * A token drawn from logits (V), of equal ones the earlier first; -1 where a logit is not finite. random: 32 bits that choose,
 * a whole number from 0. Waits for queued work.
 */
export function sample(
  logits: Address,
  V: number,
  { temperature, top_k, top_p }: Sampling,
  random: number,
): number {
  const id = new Int32Array(1);
  check(s.sample(id, logits, V, temperature, top_k, top_p, random));
  return id[0]!;
}

/** Natural logarithms of the probabilities of the target and of the likeliest tokens, the likeliest first. */
export type Logprobs = { target: number; ids: number[]; values: number[] };

/**
 * For each row of logits (N, V_stride), of which V columns count: the probability of its target, 0 where that is < 0, and of
 * the n likeliest tokens. Waits for queued work.
 */
export function logprobs(
  logits: Address,
  targets: readonly number[],
  V: number,
  V_stride: number,
  n: number,
): Logprobs[] {
  const N = targets.length, values = new Float32Array(N * (1 + n)), ids = new Int32Array(Math.max(1, N * n));
  check(s.logprobs(values, ids, logits, Int32Array.from(targets), N, V, V_stride, n));
  return targets.map((_, row) => ({
    target: values[row * (1 + n)]!,
    ids: Array.from(ids.subarray(row * n, (row + 1) * n)),
    values: Array.from(values.subarray(row * (1 + n) + 1, (row + 1) * (1 + n))),
  }));
}

// ---- token data

/** Files of tokens, and how windows of them are read. */
export type TokenFiles = {
  /** Opens a file. Throws UserError that names a file which cannot be used. */
  open(path: string, headerBytes: number, tokenBytes: number): { handle: number; tokens: number };
  /** Closes what open() gave. */
  close(handle: number): void;
  /** Writes a window to x and y (T). Throws UserError that names a file which cannot be read, has changed, or is wrong. */
  gather(x: Address, y: Address, handle: number, start: bigint, T: number, V: number): void;
  /**
   * By the same window of a mask, whose tokens have one byte each, writes -1 to y (T) where a token is not trained on, and to
   * starts (T), unless it is 0n, where in the window its conversation begins. Throws UserError as gather().
   */
  mask(y: Address, starts: Address, handle: number, start: bigint, T: number): void;
  /** Writes to starts (T) where in x (T) the document of each token begins: at the last bos up to it, else at 0. */
  starts(starts: Address, x: Address, T: number, bos: number): void;
};

/** What data/loader.ts reads windows with. */
export const tokenSource: TokenFiles = {
  open(path, headerBytes, tokenBytes) {
    const info = new BigInt64Array(2);
    checkFile(s.data_open(info, cString(path), headerBytes, tokenBytes));
    return { handle: Number(info[0]), tokens: Number(info[1]) };
  },
  close(handle) {
    check(s.data_close(handle));
  },
  gather(x, y, handle, start, T, V) {
    checkFile(s.data_gather(x, y, handle, start, T, V));
  },
  mask(y, starts, handle, start, T) {
    checkFile(s.data_mask(y, starts, handle, start, T));
  },
  starts(starts, x, T, bos) {
    check(s.document_starts(starts, x, T, bos));
  },
};

function checkFile(code: number): void {
  if (code !== BAD_FILE) return check(code);
  throw new UserError(
    asTyped(`Cannot use ${lastError()}; write the dataset again: deno task prepare --overwrite ...`),
  );
}

// ---- plan: the same calls, counting bytes only

function openPlan(act: DeviceInfo["act"]): DeviceInfo {
  let next = 4096n, now = 0n;
  const nothing = () => 0;
  const plan = Object.fromEntries(Object.keys(symbols).map((name) => [name, nothing])) as Record<
    string,
    unknown
  >;
  plan.mem_alloc = plan.host_alloc = (address: BigUint64Array, bytes: bigint) => {
    address[0] = next;
    next += (bytes + 255n) & ~255n;
    now += bytes;
    return 0;
  };
  plan.device_memory = (bytes: BigInt64Array) => {
    bytes[0] = bytes[1] = now;
    return 0;
  };
  plan.find_nonfinite = (index: BigInt64Array) => {
    index[0] = -1n;
    return 0;
  };
  plan.synchronize_async = plan.snapshot_read_async = () => Promise.resolve(0);
  s = plan as unknown as Symbols;
  device = { library: "plan", name: "plan", act };
  return device;
}

/** Runs f on a device that computes nothing and counts bytes; then the one that was open is so again. */
export function withPlan<T>(act: "f32" | "bf16", f: () => T): T {
  const before = { s, device };
  openPlan(act);
  try {
    return f();
  } finally {
    ({ s, device } = before);
  }
}

// ---- text

function cString(text: string): Uint8Array<ArrayBuffer> {
  return new TextEncoder().encode(text + "\0");
}

function fromCString(bytes: Uint8Array): string {
  return new TextDecoder().decode(bytes.subarray(0, Math.max(0, bytes.indexOf(0))));
}

function environment(name: string): string {
  return Deno.env.get(name) ?? "";
}
