// Opening libraries: what is missing, broken or not for this processor; then the device's memory. Failures are shown by a copy
// of ffi/ beside a build/ folder of its own, with libraries compiled from a few lines of C.
import { assert, assertEquals, assertMatch, assertRejects, assertThrows } from "@std/assert";
import { findCompiler } from "../tools/build.ts";
import { KernelError } from "../base/errors.ts";
import { environment } from "../base/testing.ts";
import * as k from "./kernels.ts";
import * as library from "./library.ts";
import { FUNCTIONS } from "./symbols.ts";

const { allocate, copyToDevice, copyToHost, free, memoryUse, open } = library;
open("cpu", { threads: 2 });

type Copy = { library: typeof library; build: string } & Disposable;

/** A fresh copy of this module in a folder whose name has a space, with an empty build/ folder beside it. */
async function freshCopy(): Promise<Copy> {
  const root = Deno.makeTempDirSync({ prefix: "loam copy " });
  for (const folder of ["base", "ffi", "build"]) Deno.mkdirSync(`${root}/${folder}`);
  const modules = ["ffi/library", "ffi/symbols", "base/errors", "base/visible", "base/command"].map((name) =>
    `${name}.ts`
  );
  for (const name of ["deno.json", ...modules]) {
    Deno.copyFileSync(`${import.meta.dirname}/../${name}`, `${root}/${name}`);
  }
  return {
    library: await import(`file://${root}/ffi/library.ts`),
    build: `${root}/build`,
    [Symbol.dispose]: () => Deno.removeSync(root, { recursive: true }),
  };
}

type Fake = { version?: number; info?: string; openError?: string; index?: number; without?: string };

/** Compiles a library with every function of kernels.h; each returns 0, and does nothing but what fake says. */
async function compileFake(
  path: string,
  { version = library.ABI_VERSION, info = "{}", openError = "", index, without }: Fake,
): Promise<void> {
  const special: Record<string, string> = {
    abi_version: `int abi_version(void) { return ${version}; }`,
    device_info:
      `int device_info(char* json, int n) { return n < (int)strlen(info) || !strcpy(json, info); }`,
    device_open: `int device_open(int i, int t, int b, const char* s, const char* a) { return ${
      openError ? 1 : index === undefined ? 0 : `i != ${index}`
    }; }`,
    last_error: `int last_error(char* text, int n) { return n < 100 || !strcpy(text, error); }`,
  };
  const functions = FUNCTIONS.filter((name) => name !== without).map((name) =>
    special[name] ?? `int ${name}(void) { return 0; }`
  );
  const code = [
    "#include <string.h>",
    `static const char *info = ${JSON.stringify(info)}, *error = ${JSON.stringify(openError)};`,
  ];
  Deno.writeTextFileSync(`${path}.c`, [...code, ...functions].join("\n"));
  const { command } = await findCompiler(), args = ["-x", "c", "-shared", "-fPIC", `${path}.c`, "-o", path];
  const { success, stderr } = await new Deno.Command(command, { args, stderr: "piped" }).output();
  assert(success, new TextDecoder().decode(stderr));
}

/** The message of the UserError that f throws; a copy has a class of its own by that name. */
function userError(f: () => unknown): string {
  const error = assertThrows(f) as Error;
  assertEquals(error.name, "UserError", error.message);
  return error.message;
}

// ---- what cannot be opened

Deno.test("open() names the command that builds what is missing", async () => {
  using copy = await freshCopy();
  const { open, libraryExists, chooseDevice } = copy.library;
  assertEquals([libraryExists("cpu"), libraryExists("cuda")], [false, false]);
  assertEquals(
    userError(() => open("cpu")),
    `Cannot open ${copy.build}/libloam_cpu.so: it is not built; run: deno task build`,
  );
  assertEquals(
    userError(() => open("cuda")),
    `Cannot open ${copy.build}/libloam_cuda.so: it is not built; run: deno task build (it needs nvcc and cuBLASLt; see deno task doctor)`,
  );
  assertEquals(chooseDevice(), { name: "cpu", reason: "the CUDA library is not built" });
});

Deno.test("functions called before open() say so", async () => {
  using copy = await freshCopy();
  assertThrows(() => copy.library.allocate(8), Error, "internal: mem_alloc was called before open()");
});

Deno.test("open() says what is wrong with a library that does not load", async () => {
  using copy = await freshCopy();
  const path = `${copy.build}/libloam_cpu.so`;
  Deno.writeTextFileSync(path, "not a library");
  const message = userError(() => copy.library.open("cpu"));
  assert(
    message.startsWith(`Cannot load ${path}: `) &&
      message.endsWith("; build it again: deno task build --force"),
    message,
  );
  await compileFake(path, { without: "swiglu_forward" });
  assertMatch(userError(() => copy.library.open("cpu")), /Cannot load .*: .*swiglu_forward; build it again/);
});

const loads = { sanitizeResources: false }; // libraries stay loaded for the life of the process

Deno.test("open() refuses a library with another version of the interface", loads, async () => {
  using copy = await freshCopy();
  const path = `${copy.build}/libloam_cpu.so`;
  await compileFake(path, { version: 99 });
  assertEquals(
    userError(() => copy.library.open("cpu")),
    `Cannot use ${path}: its interface is version 99, this program wants ${library.ABI_VERSION}; run: deno task build --force`,
  );
});

Deno.test("open() refuses LOAM_ISA that is unknown, not built or not in this processor", loads, async () => {
  using copy = await freshCopy();
  await compileFake(`${copy.build}/libloam_cpu.so`, { info: '{"isa":"portable","isa_best":"avx2"}' });
  const message = (LOAM_ISA: string) => {
    using _ = environment({ LOAM_ISA });
    return userError(() => copy.library.open("cpu"));
  };
  const cannot = (isa: string) => `Cannot open the CPU library for LOAM_ISA=${isa}: `;
  assertEquals(message("sse9"), cannot("sse9") + "it must be portable, avx2 or avx512");
  assertEquals(message("avx512"), cannot("avx512") + "this processor has avx2");
  assertEquals(
    message("avx2"),
    `Cannot open ${copy.build}/libloam_cpu_avx2.so: it is not built; run: deno task build`,
  );
  assertEquals(copy.library.open("cpu").isa, "portable"); // the best is not built: go on with what there is
});

Deno.test("chooseDevice() takes the GPU, or the CPU with the reason why no GPU answers", loads, async () => {
  using none = await freshCopy();
  const openError = "device_open: no NVIDIA GPU found: check nvidia-smi, or use --device=cpu";
  await compileFake(`${none.build}/libloam_cuda.so`, { openError });
  const reason = "the CUDA library opens no GPU, see deno task doctor";
  assertEquals(none.library.chooseDevice(), { name: "cpu", reason });
  using full = await freshCopy(); // a GPU that is there but cannot be used is not passed over in a general word
  await compileFake(`${full.build}/libloam_cuda.so`, {
    openError: "device_open: 67.1 MB do not fit on H100",
  });
  const why = "device_open: 67.1 MB do not fit on H100";
  assertEquals(full.library.chooseDevice(), { name: "cpu", reason: why });
  using one = await freshCopy();
  await compileFake(`${one.build}/libloam_cuda.so`, { info: '{"name":"H100","library":"cuda"}' });
  assertEquals(one.library.chooseDevice(), { name: "cuda", reason: "H100" });
  using eight = await freshCopy();
  await compileFake(`${eight.build}/libloam_cuda.so`, { info: '{"name":"H100","library":"cuda"}', index: 7 });
  assertEquals(eight.library.chooseDevice(7), { name: "cuda", reason: "H100" }); // a rank opens its own and no other
});

// ---- what can

Deno.test("open() opens the instruction set that LOAM_ISA asks for, else the best", loads, () => {
  const best = library.device.isa_best;
  {
    using _ = environment({ LOAM_ISA: "portable" });
    assertEquals(open("cpu", { threads: 1 }).isa, "portable");
  }
  if (library.libraryExists(`cpu_${best}`)) assertEquals(open("cpu", { threads: 2 }).isa, best);
});

Deno.test("open() takes the BLAS that it is told, else that of LOAM_BLAS", loads, () => {
  {
    using _ = environment({ LOAM_BLAS: "builtin" });
    assertEquals(open("cpu", { threads: 2 }).blas, "builtin");
  }
  using _ = environment({ LOAM_BLAS: "lapack" });
  assertEquals(open("cpu", { threads: 2, blas: "builtin" }).blas, "builtin");
  assertThrows(() => open("cpu", { threads: 2 }), KernelError, 'blas="lapack" is not known');
});

Deno.test(
  "open() takes the library's own product on processors that it was measured on, unless it is told",
  loads,
  () => {
    if (Deno.build.os !== "linux") return;
    const isMeasured = / avx512_bf16\b/.test(cpuinfo()) && !/ amx_tile\b/.test(cpuinfo());
    using _ = environment({ LOAM_BLAS: "", LOAM_ISA: "" });
    const found = open("cpu", { threads: 2, blas: "" }).blas!;
    assertEquals(open("cpu", { threads: 2 }).blas, isMeasured ? "builtin" : found);
    assertEquals(open("cpu", { threads: 2, blas: "auto" }).blas, isMeasured ? "builtin" : found);
    using __ = environment({ LOAM_BLAS: found.split(" ")[0]! });
    assertEquals(open("cpu", { threads: 2 }).blas, found);
  },
);

Deno.test("open() has idle OpenMP threads sleep, unless the user says how they wait", loads, () => {
  const set = (values: Record<string, string>) => {
    using _ = environment({ GOMP_SPINCOUNT: "", OMP_WAIT_POLICY: "", ...values });
    open("cpu", { threads: 2 });
    return Deno.env.get("GOMP_SPINCOUNT");
  };
  assertEquals([set({}), set({ GOMP_SPINCOUNT: "7" }), set({ OMP_WAIT_POLICY: "active" })], [
    "5000",
    "7",
    "",
  ]);
});

Deno.test("open() reopens with other settings and memory stays valid", loads, () => {
  const address = allocate(8), values = new Float32Array(2);
  copyToDevice(address, Float32Array.of(1, 2));
  const info = open("cpu", { threads: 3, blas: "builtin" });
  assertEquals([info.library, info.act, info.threads, info.blas], ["cpu", "f32", 3, "builtin"]);
  copyToHost(values, address);
  assertEquals([...values], [1, 2]);
  free(address);
  assert(open("cpu").threads! >= 1); // 0 = all
  open("cpu", { threads: 2 });
});

Deno.test("open() throws KernelError with the library's own words", loads, () => {
  assertThrows(
    () => open("cpu", { blas: "lapack" }),
    KernelError,
    'blas="lapack" is not known; choose auto, builtin, onednn',
  );
  const { message } = assertThrows(() => open("cpu", { blas: "accelerate" }), KernelError);
  assertMatch(message, /not found on this machine; found: .*builtin; auto chooses one$/); // to who resumes a run made elsewhere
  assertThrows(() => open("cpu", { index: 1 }), KernelError, "index=1");
  assertThrows(() => open("cpu", { threads: -1 }), KernelError, "threads=-1");
});

Deno.test("open() with bf16_gemm rounds the inputs of matrix products to bfloat16", loads, () => {
  try {
    open("cpu", { threads: 2, bf16_gemm: true });
  } catch (error) {
    if (!(error instanceof KernelError)) throw error;
    return assertMatch(error.message, /needs a processor with AVX512-BF16, or a BLAS with a bfloat16 GEMM/);
  }
  const N = 9, [out, x, weight] = [allocate(4 * N), allocate(8 * N), allocate(8)] as const; // fewer rows stay float
  const result = new Float32Array(N), row = [1 + 2 ** -9, 3]; // the first is a tie: it rounds to the even 1
  copyToDevice(x, Float32Array.from(Array(N).fill(row).flat()));
  copyToDevice(weight, Float32Array.of(256, 1 + 2 ** -6));
  k.linear_forward(out, x, weight, 0n, N, 2, 1);
  copyToHost(result, out);
  assertEquals(Array.from(result), Array(N).fill(256 + 3 * (1 + 2 ** -6))); // the sum is float
  for (const address of [out, x, weight]) free(address);
  open("cpu", { threads: 2 });
});

/** What Linux says of the processor: Deno lets only a program with all permissions read it. */
function cpuinfo(): string {
  return new TextDecoder().decode(new Deno.Command("cat", { args: ["/proc/cpuinfo"] }).outputSync().stdout);
}

Deno.test("open() with bf16_gemm auto rounds where the processor has a unit for it, and no BLAS is named that cannot", () => {
  const here = open("cpu", { threads: 2, bf16_gemm: "auto" });
  if (Deno.build.os === "linux" && here.isa === "avx512") {
    assertEquals(here.bf16_gemm, / avx512_bf16\b/.test(cpuinfo()));
  }
  const builtin = open("cpu", { threads: 2, bf16_gemm: "auto", blas: "builtin" });
  assertEquals(builtin.bf16_gemm, here.bf16_gemm);
  try {
    assertEquals(open("cpu", { threads: 2, bf16_gemm: "auto", blas: "blis" }).bf16_gemm, false); // it has none
  } catch (error) {
    assertMatch((error as Error).message, /not found on this machine/);
  }
  assertEquals(open("cpu", { threads: 2 }).bf16_gemm, false);
});

// ---- memory

Deno.test("allocate() gives zeros aligned to 256 bytes and memoryUse() counts them", () => {
  const before = memoryUse(), sizes = [1, 300, 5_000_000];
  const addresses = sizes.map(allocate);
  for (const [i, address] of addresses.entries()) {
    assertEquals(address % 256n, 0n);
    const bytes = new Uint8Array(sizes[i]!).fill(1);
    copyToHost(bytes, address);
    assert(bytes.every((byte) => byte === 0));
  }
  const during = memoryUse();
  assertEquals(during.now - before.now, 5_000_301);
  assert(during.peak >= during.now && during.free > 0 && during.total > during.free);
  addresses.forEach(free);
  assertEquals(memoryUse().now, before.now);
  free(allocate(1));
  assert(memoryUse().peak >= during.now);
  assertThrows(() => free(addresses[0]!), KernelError, "mem_free");
});

Deno.test("what was given is missing from what is free before it is touched", () => {
  const before = memoryUse().free, bytes = Math.floor(before / 3), given = [allocate(bytes)];
  const taken = before - memoryUse().free; // other programs take and give meanwhile, but not half of that
  assert(taken > bytes / 2 && taken < 1.5 * bytes, `${taken} of ${bytes}`);
  const allocateThree = () => [1, 2, 3].forEach(() => given.push(allocate(bytes)));
  assertThrows(allocateThree, KernelError, " MB do not fit: ");
  given.forEach(free);
});

Deno.test("what is free leaves out what the rest of the process needs", () => {
  const kept = Array.from({ length: 15 }, () => library.hostLimits().free - memoryUse().free).sort((a, b) =>
    a - b
  );
  assert(kept[7]! > 50e6, `${kept}`); // 64 MB; other programs take and give between the two looks
});

Deno.test("allocate() does not give twice what it found to be free", () => {
  const bytes = Math.floor(0.6 * memoryUse().free);
  for (const _ of [1, 2]) { // whatever it remembers from what was given before
    const first = allocate(bytes);
    try {
      assertThrows(() => free(allocate(bytes)), KernelError, " MB do not fit: ");
    } finally {
      free(first);
    }
  }
});

Deno.test(
  "free(), and larger scratch memory, give addresses back",
  { ignore: Deno.build.os !== "linux" },
  () => {
    const reserved = () => { // bytes; Deno grants nobody but --allow-all to read /proc by itself
      const args = ["-c", `grep VmSize /proc/${Deno.pid}/status`];
      const { stdout } = new Deno.Command("sh", { args }).outputSync();
      return 1024 * Number(/\d+/.exec(new TextDecoder().decode(stdout))![0]);
    };
    const grown = (action: () => void) => {
      const before = reserved();
      action();
      return reserved() - before;
    };
    const blocks = (n: number) => {
      for (let i = 1; i <= n; i++) free(allocate(2 ** 21 + 4096 * i));
    };
    const H = 8, D = 64, B = 4096, qkv = allocate(4 * B * 3 * H * D), out = allocate(4 * B * H * D);
    const lse = allocate(4 * B * H),
      scratch = (B: number) => k.attention_forward(out, lse, qkv, 0n, B, 1, H, H, D);
    for (const _ of [1, 2]) grown(() => (blocks(1), scratch(512))); // malloc reserves 64 MB for each thread that is new
    assert(grown(() => blocks(400)) < 300e6, "blocks of more than 2 MB"); // else 2 MB of each
    const larger = grown(() => {
      for (let rows = 1024; rows <= B; rows += 96) scratch(rows); // of 4 to 17 MB
    });
    assert(larger < 150e6, `scratch memory: ${larger}`); // else 350 MB
    [qkv, out, lse].forEach(free);
  },
);

Deno.test("allocate() of more than there is throws with both sizes", () => {
  assertThrows(() => allocate(2 ** 50), KernelError, "mem_alloc: 1125899906.8 MB do not fit: ");
  assertThrows(() => allocate(0), KernelError, "mem_alloc: bytes must be at least 1");
});

Deno.test("copies of several megabytes, which threads share, are whole", () => {
  const n = (5 << 19) + 3,
    bytes = Uint8Array.from({ length: n }, (_, i) => i * i >> 7),
    address = allocate(n + 1);
  copyToDevice(address + 1n, bytes);
  const back = new Uint8Array(n);
  copyToHost(back, address + 1n);
  assertEquals(bytes.findIndex((byte, i) => byte !== back[i]), -1);
  copyToHost(back.subarray(1), address + 1n);
  assertEquals([back[0], back[1], back[n - 1]], [bytes[0], bytes[0], bytes[n - 2]]);
  free(address);
});

Deno.test("findNonFinite() finds the first NaN or infinity wherever it is", () => {
  const n = 20_000, address = allocate(4 * n), values = new Float32Array(n).fill(3.4e38);
  for (
    const [at, value] of [[-1, 0], [0, NaN], [4095, Infinity], [4096, -Infinity], [19_999, NaN]] as const
  ) {
    const planted = at < 0 ? values : values.with(at, value).fill(NaN, at + 1);
    copyToDevice(address, planted);
    assertEquals(library.findNonFinite(address, library.F32, n), at);
  }
  copyToDevice(address, Float32Array.of(1, -2, NaN, 4));
  const half = allocate(8);
  k.convert(half, address, library.BF16, library.F32, 4n);
  assertEquals(library.findNonFinite(half, library.BF16, 4), 2);
  [address, half].forEach(free);
});

Deno.test("synchronize() resolves when the device is done, and rejects with its failure", async () => {
  await library.synchronize();
  library.synchronizeNow();
  using copy = await freshCopy();
  await assertRejects(
    () => copy.library.synchronize(),
    Error,
    "internal: synchronize_async was called before open()",
  );
});

Deno.test("readSnapshot() gives the oldest snapshot as it was when it was taken", async () => {
  const address = allocate(8), read = new Float32Array(2);
  copyToDevice(address, Float32Array.of(1, 2));
  library.snapshot(address, 8);
  k.init_constant(address, 2n, 3);
  library.snapshot(address, 8);
  k.init_constant(address, 2n, 4);
  assertThrows(() => library.snapshot(address, 8), KernelError, "snapshot: 2 wait to be read already");
  await library.readSnapshot(read);
  assertEquals(Array.from(read), [1, 2]);
  library.snapshot(address, 8);
  await library.readSnapshot(read);
  assertEquals(Array.from(read), [3, 3]);
  await library.readSnapshot(read);
  assertEquals(Array.from(read), [4, 4]);
  const message = "snapshot_read: none was taken since the last one was read";
  await assertRejects(() => library.readSnapshot(read), KernelError, message);
  assertThrows(() => library.snapshot(address, 65_537), KernelError, "snapshot: 65537 bytes");
  free(address);
});

Deno.test("mark() and the second stream: work beside waits for a mark, and what joins it for that work", async () => {
  const { mark, markMs, sideJoin, sideMark, sideStream, sideWait, synchronize } = library;
  mark(3);
  mark(4);
  assertEquals(sideStream() === 0n, library.deviceStream() === 0n);
  sideWait(4);
  sideMark(5);
  sideJoin(5);
  await synchronize();
  assert(markMs(3, 4) >= 0 && markMs(3, 4) < 10_000);
  assertThrows(() => mark(16_384), KernelError, "mark: mark 16384, at most 16383");
  assertThrows(() => markMs(3, 16_384), KernelError, "mark_ms: marks 3 and 16384");
});

Deno.test("the first failure is reported, and only once", () => {
  assertThrows(() => k.fill_zero(0n, 8n), KernelError, "fill_zero: the address of dst is 0 (bytes=8)");
  library.check(0);
  assertThrows(() => library.check(1), KernelError, "internal: code 1 without a text");
  assertEquals([library.s.fill_zero(0n, 8n), library.s.fill_zero(0n, 16n)], [1, 1]);
  assertThrows(() => library.check(1), KernelError, "fill_zero: the address of dst is 0 (bytes=8)");
});

// ---- plan

Deno.test("the plan device counts bytes, hands out distinct addresses and computes nothing", async () => {
  using copy = await freshCopy();
  const { open, allocate, memoryUse, findNonFinite, synchronize, copyToDevice } = copy.library;
  assertEquals(open("plan", { act: "bf16" }), { library: "plan", name: "plan", act: "bf16" });
  const huge = 2 ** 42, addresses = [1, huge, 300].map(allocate);
  assertEquals(addresses, [addresses[0]!, addresses[0]! + 256n, addresses[0]! + 256n + BigInt(huge)]);
  assertEquals([memoryUse().now, memoryUse().peak], [huge + 301, huge + 301]);
  copyToDevice(addresses[1]!, Float32Array.of(1));
  assertEquals(findNonFinite(addresses[0]!, 0, 10), -1);
  await synchronize();
  assertEquals(open("plan").act, "f32");
});

// ---- limits

const GB = 1e9;
const MEMINFO = "MemTotal:       16000000 kB\nMemFree:         1000000 kB\nMemAvailable:   12000000 kB\n";
const V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
const V1 = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:5 - cgroup cgroup rw,memory\n" +
  "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n";
const NO_LIMIT = 9223372036854771712n; // what version 1 writes

/** What host_limits() says of a machine with these files, by path; a directory of its own holds them. */
function limitsOf(files: Record<string, string | number | bigint>): ReturnType<typeof library.hostLimits> {
  const root = Deno.makeTempDirSync();
  for (const [path, text] of Object.entries({ "/proc/meminfo": MEMINFO, ...files })) {
    Deno.mkdirSync(root + path.slice(0, path.lastIndexOf("/")), { recursive: true });
    Deno.writeTextFileSync(root + path, `${text}\n`);
  }
  const limits = library.hostLimits(root);
  Deno.removeSync(root, { recursive: true });
  return limits;
}

/** The files of a cgroup of version 2: used counts 0.5 GB of file cache that can be taken back. */
function cgroup2(
  directory: string,
  max: number | "max",
  high: number | "max",
  used: number,
  cpu = "max 100000",
) {
  const stat = `anon 1\nfile 600000000\ninactive_anon 7\ninactive_file 400000000\nactive_file 100000000`;
  const files = { max, high, current: used, stat };
  const entries = Object.entries(files).map(([name, text]) => [`${directory}/memory.${name}`, text]);
  return Object.fromEntries([...entries, [`${directory}/cpu.max`, cpu]]);
}

/** The memory files of a cgroup of version 1, likewise. */
function cgroup1(
  directory: string,
  limit: number | bigint,
  used: number,
  hierarchical: number | bigint = limit,
) {
  const stat = `cache 1\ninactive_file 1\nactive_file 1\nhierarchical_memory_limit ${hierarchical}\n` +
    `total_inactive_file 400000000\ntotal_active_file 100000000`;
  return {
    [`${directory}/memory.limit_in_bytes`]: limit,
    [`${directory}/memory.usage_in_bytes`]: used,
    [`${directory}/memory.stat`]: stat,
  };
}

Deno.test("hostLimits() of a machine without cgroups is what /proc/meminfo calls available", () => {
  const machine = { free: 12000000 * 1024, total: 16000000 * 1024, cpus: 0, source: "the machine's memory" };
  assertEquals(limitsOf({}), machine);
  assertEquals(limitsOf({ "/proc/self/cgroup": "", "/proc/self/mountinfo": "" }), machine);
  const unlimited = { "/proc/self/cgroup": "0::/a", "/proc/self/mountinfo": V2 };
  assertEquals(limitsOf({ ...unlimited, ...cgroup2("/sys/fs/cgroup/a", "max", "max", 5 * GB) }), machine);
  assertEquals(limitsOf({ ...unlimited, ...cgroup2("/sys/fs/cgroup/a", 60 * GB, "max", 5 * GB) }), machine);
});

Deno.test("hostLimits() takes the least that the nested cgroups of version 2 leave, without their file cache", () => {
  const at = { "/proc/self/cgroup": "0::/pod/app/job", "/proc/self/mountinfo": V2 }, top = "/sys/fs/cgroup";
  const pod = (left: number) => cgroup2(`${top}/pod`, left + 2.5 * GB, "max", 3 * GB, "400000 100000");
  const app = (high: number) => cgroup2(`${top}/pod/app`, 9 * GB, high, 2 * GB, "150000 100000");
  const job = cgroup2(`${top}/pod/app/job`, 8 * GB, "max", 1.5 * GB);
  assertEquals(limitsOf({ ...at, ...pod(6 * GB), ...app(9 * GB), ...job }), {
    free: 6 * GB,
    total: 8.5 * GB,
    cpus: 2, // 1.5 rounded up
    source: "memory.max of cgroup /sys/fs/cgroup/pod",
  });
  assertEquals(limitsOf({ ...at, ...pod(7.5 * GB), ...app(9 * GB), ...job }).free, 7 * GB); // the job's own
  assertEquals(limitsOf({ ...at, ...pod(6 * GB), ...app(3 * GB), ...job }), {
    free: 1.5 * GB,
    total: 3 * GB,
    cpus: 2,
    source: "memory.high of cgroup /sys/fs/cgroup/pod/app",
  });
  assertEquals(limitsOf({ ...at, ...pod(-1 * GB), ...app(9 * GB), ...job }).free, 0);
});

Deno.test("hostLimits() finds the limits of a container, which sees the end of its path or none of it", () => {
  const two = cgroup2("/sys/fs/cgroup", 2 * GB, "max", 1 * GB, "50000 100000");
  const expected = { free: 1.5 * GB, total: 2 * GB, cpus: 1, source: "memory.max of cgroup /sys/fs/cgroup" };
  for (const own of ["0::/", "0::/../../outside", "0::/docker/0123abc"]) { // with a namespace, moved out of it, without
    assertEquals(limitsOf({ "/proc/self/cgroup": own, "/proc/self/mountinfo": V2, ...two }), expected, own);
  }
  const shown = V2.replace(" / /sys", " /docker/0123abc /sys");
  assertEquals(
    limitsOf({ "/proc/self/cgroup": "0::/docker/0123abc", "/proc/self/mountinfo": shown, ...two }),
    expected,
  );
  const below = cgroup2("/sys/fs/cgroup/x", 1 * GB, "max", 0.7 * GB);
  const inner = {
    "/proc/self/cgroup": "0::/docker/0123abc/x",
    "/proc/self/mountinfo": shown,
    ...two,
    ...below,
  };
  assertEquals(limitsOf(inner).source, "memory.max of cgroup /sys/fs/cgroup/x");
  const other = {
    "/proc/self/cgroup": "0::/docker/0123abcdef/x",
    "/proc/self/mountinfo": shown,
    ...two,
    ...below,
  };
  assertEquals(limitsOf(other), expected); // another cgroup, whose name begins alike
});

Deno.test("hostLimits() reads version 1, with limits above what can be seen, and quotas of processor time", () => {
  const own = "4:memory:/slurm/job_7\n2:cpu,cpuacct:/slurm/job_7\n1:name=systemd:/\n0::/";
  const at = { "/proc/self/cgroup": own, "/proc/self/mountinfo": V1 }, top = "/sys/fs/cgroup/memory";
  const cpu = (quota: number) => ({
    "/sys/fs/cgroup/cpu,cpuacct/slurm/job_7/cpu.cfs_quota_us": quota,
    "/sys/fs/cgroup/cpu,cpuacct/slurm/job_7/cpu.cfs_period_us": 50000,
  });
  const job = cgroup1(`${top}/slurm/job_7`, 3 * GB, 1 * GB), all = cgroup1(`${top}/slurm`, NO_LIMIT, 9 * GB);
  assertEquals(limitsOf({ ...at, ...job, ...all, ...cpu(160000) }), {
    free: 2.5 * GB,
    total: 3 * GB,
    cpus: 4,
    source: "memory.limit_in_bytes of cgroup /sys/fs/cgroup/memory/slurm/job_7",
  });
  assertEquals(limitsOf({ ...at, ...job, ...cpu(-1) }).cpus, 0);
  const full = cgroup1(`${top}/slurm`, 10 * GB, 9 * GB);
  assertEquals(
    limitsOf({ ...at, ...job, ...full }).source,
    "memory.limit_in_bytes of cgroup /sys/fs/cgroup/memory/slurm",
  );
  const unseen = cgroup1(`${top}/slurm/job_7`, NO_LIMIT, 1 * GB, 2 * GB);
  assertEquals(limitsOf({ ...at, ...unseen }), {
    free: 1.5 * GB,
    total: 2 * GB,
    cpus: 0,
    source: "hierarchical_memory_limit of cgroup /sys/fs/cgroup/memory/slurm/job_7",
  });
});

Deno.test("hostLimits() reads both versions side by side, and mounts elsewhere", () => {
  const V2_BESIDE = "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
  const both = { "/proc/self/cgroup": "4:memory:/a\n0::/b", "/proc/self/mountinfo": V1 + V2_BESIDE };
  const one = cgroup1("/sys/fs/cgroup/memory/a", 3 * GB, 1 * GB);
  const two = { "/sys/fs/cgroup/unified/b/cpu.max": "250000 100000" }; // its memory belongs to version 1
  const { free, cpus } = limitsOf({ ...both, ...one, ...two });
  assertEquals([free, cpus], [2.5 * GB, 3]);
  const spaced = { "/proc/self/cgroup": "0::/", "/proc/self/mountinfo": V2.replace("/sys/fs", "/my\\040cg") };
  const { source } = limitsOf({ ...spaced, ...cgroup2("/my cg/cgroup", 2 * GB, "max", 1 * GB) });
  assertEquals(source, "memory.max of cgroup /my cg/cgroup");
});
