import { assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { UserError } from "../base/errors.ts";
import { sha256OfFile } from "../base/files.ts";
import { type Entry, fromFloat32, readSafetensors, toFloat32, writeSafetensors } from "./safetensors.ts";

const PYTHON = Deno.env.get("LOAM_PYTHON");
const FROM_PYTHON = `${import.meta.dirname}/../tests/golden/from_python.safetensors`;
const VALUES = [0, -0, 1.5, -2.25, 65504, 2 ** -14];

const F32: Entry = {
  name: "f32",
  dtype: "F32",
  shape: [2, 3],
  bytes: () => new Uint8Array(new Float32Array(VALUES).buffer),
};
const CHUNKED: Entry = {
  name: "größe",
  dtype: "BF16",
  shape: [5],
  *bytes() {
    yield Uint8Array.of(0x80, 0x3f, 0x00); // 1, and half of -2
    yield Uint8Array.of(0xc0);
    yield new Uint8Array(6);
  },
};
const EMPTY: Entry = { name: "empty", dtype: "I32", shape: [0, 4], bytes: () => new Uint8Array(0) };

/** A path in the temporary directory that is removed at the end of the block. */
function tempFile(bytes = new Uint8Array(0)): { path: string } & Disposable {
  const path = Deno.makeTempFileSync({ suffix: ".safetensors" });
  Deno.writeFileSync(path, bytes);
  return { path, [Symbol.dispose]: () => Deno.removeSync(path) };
}

/** A file with the given header and `data` zero bytes after it. */
function crafted(header: unknown, data: number): Uint8Array<ArrayBuffer> {
  const json = new TextEncoder().encode(typeof header === "string" ? header : JSON.stringify(header));
  const bytes = new Uint8Array(8 + json.length + data);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(json.length), true);
  bytes.set(json, 8);
  return bytes;
}

Deno.test("writeSafetensors() writes what readSafetensors() reads", () => {
  using file = tempFile();
  const sha256 = writeSafetensors(file.path, [F32, CHUNKED, EMPTY], { note: "ü" });
  assertEquals(sha256, sha256OfFile(file.path));
  const { metadata, tensors, read } = readSafetensors(file.path);

  assertEquals(metadata, { format: "pt", note: "ü" });
  assertEquals([...tensors.keys()], ["f32", "größe", "empty"]);
  assertEquals(tensors.get("f32")!.offset % 8, 0);
  assertEquals([...toFloat32(read("f32"), "F32")], VALUES);
  assertEquals([...toFloat32(read("f32", 4, 12), "F32")], VALUES.slice(1, 3));
  assertEquals([...toFloat32(read("größe"), "BF16")], [1, -2, 0, 0, 0]);
  assertEquals(read("empty").length, 0);
  assertThrows(() => read("other"), UserError, "no tensor of that name");
});

Deno.test("writeSafetensors() refuses bytes that do not fill the shape", () => {
  using file = tempFile();
  const short = { ...F32, bytes: () => new Uint8Array(20) };
  assertThrows(() => writeSafetensors(file.path, [short]), Error, "f32 is 4 bytes short of its shape");
  assertThrows(() => writeSafetensors(file.path, [F32, F32]), Error, "two tensors are called f32");
});

Deno.test({
  name: "writeSafetensors() says why when the system takes no more bytes",
  ignore: Deno.build.os === "windows",
  fn() {
    using file = tempFile();
    const script = `import { writeSafetensors } from "${import.meta.resolve("./safetensors.ts")}";
      const bytes = () => new Uint8Array(4 << 20);
      writeSafetensors("${file.path}", [{ name: "x", dtype: "F32", shape: [1 << 20], bytes }]);`;
    const limited = `trap "" XFSZ; ulimit -f 2048; exec "$0" eval '${script}'`; // 1 MiB per file, like a full disk
    const { success, stderr } = new Deno.Command("sh", { args: ["-c", limited, Deno.execPath()] })
      .outputSync();
    assertEquals(success, false);
    assertStringIncludes(
      new TextDecoder().decode(stderr),
      `UserError: Cannot write ${file.path}: File too large`,
    );
  },
});

Deno.test("readSafetensors() reads a file written by Python", () => {
  const { metadata, tensors, read } = readSafetensors(FROM_PYTHON);
  assertEquals(JSON.parse(metadata.about!).note, "ü");
  assertEquals(tensors.get("größe")!.shape, [0, 4]);
  assertEquals(tensors.get("scalar")!.shape, []);
  assertEquals([...toFloat32(read("scalar"), "F32")], [0.5]);
  assertEquals([...new Int32Array(read("i32").buffer)], [-1, 2 ** 31 - 1]);
  assertEquals([...toFloat32(read("f32"), "F32")], VALUES);
  assertEquals([...toFloat32(read("f16"), "F16")], VALUES);
  assertEquals([...toFloat32(read("bf16"), "BF16")], [0, -0, 1.5, -2.25, 65536, 2 ** -14]); // 8 bits of precision
});

Deno.test("readSafetensors() names both sizes when a file is cut short anywhere", () => {
  const whole = Deno.readFileSync(FROM_PYTHON);
  const data = Math.min(...readSafetensors(FROM_PYTHON).tensors.values().map((t) => t.offset));
  for (let size = 0; size < whole.length; size++) {
    using file = tempFile(whole.slice(0, size));
    const { message } = assertThrows(() => readSafetensors(file.path), UserError, `Cannot read ${file.path}`);
    assertStringIncludes(message, `it has ${size} bytes`);
    if (size >= data) assertStringIncludes(message, `promises ${whole.length}`);
  }
});

Deno.test("readSafetensors() finds bytes that do not belong to the file", () => {
  const whole = Deno.readFileSync(FROM_PYTHON);
  using file = tempFile(new Uint8Array([...whole, 0]));
  assertThrows(
    () => readSafetensors(file.path),
    UserError,
    `has ${whole.length + 1} bytes, but its header promises`,
  );
});

Deno.test("readSafetensors() survives any damaged header byte", () => {
  const whole = Deno.readFileSync(FROM_PYTHON);
  const data = Math.min(...readSafetensors(FROM_PYTHON).tensors.values().map((t) => t.offset));
  for (let at = 0; at < data; at++) {
    for (const flip of [0x01, 0x10, 0x80]) {
      const bytes = whole.slice();
      bytes[at]! ^= flip;
      using file = tempFile(bytes);
      try {
        readSafetensors(file.path); // a letter inside a name or the metadata may change unnoticed
      } catch (error) {
        if (!(error instanceof UserError)) throw error;
      }
    }
  }
});

Deno.test("readSafetensors() says what is wrong with a header", () => {
  const x = { dtype: "F32", shape: [2], data_offsets: [0, 8] };
  const json = JSON.stringify;
  const cases: [unknown, number, string][] = [
    ["{", 0, "not a JSON object"],
    [[1], 0, "not a JSON object"],
    [{ __metadata__: 1 }, 0, "__metadata__ is not an object"],
    [{ x: 1 }, 0, "the shape or the data_offsets of x"],
    [{ x: { ...x, shape: [-2] } }, 8, "the shape or the data_offsets of x"],
    [{ x: { ...x, shape: [3] } }, 8, "x spans 8 bytes, but F32 (3) needs 12"],
    [{ x: { ...x, dtype: "F8_E4M3" } }, 8, "x has dtype F8_E4M3, and should have one of F32, BF16, F16, I32"],
    [{ x, y: { ...x, data_offsets: [4, 12] } }, 12, "y begins at byte"], // overlap
    [{ x: { ...x, shape: [2 ** 53 - 1, 2 ** 53 - 1] } }, 8, "x spans 8 bytes, but F32"],
    [{ x: { ...x, shape: [0, 2 ** 53 - 1] } }, 8, "x spans 8 bytes, but F32"],
    [{ x: { ...x, shape: [2 ** 60] } }, 8, "the shape or the data_offsets of x"],
    [{ x: { ...x, data_offsets: [8, 0] } }, 8, "x spans -8 bytes"],
    [{ x: { ...x, data_offsets: [0, 8, 8] } }, 8, "the shape or the data_offsets of x"],
    [`{"x": ${json(x)}, "x" : ${json({ ...x, shape: [1, 2] })}}`, 8, 'its header has "x" twice'],
    [`{"x": ${json(x)}, "\\u0078": ${json(x)}}`, 8, 'its header has "\\u0078" twice'],
    [`{"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 8], "shape": [2]}}`, 8, '"shape" twice'],
    [`{"__metadata__": {"a": "x\\":{", "a": ""}, "x": ${json(x)}}`, 8, '"a" twice'],
    [{ x, y: { ...x, data_offsets: [12, 20] } }, 20, "y begins at byte"], // hole
  ];
  for (const [header, data, expected] of cases) {
    using file = tempFile(crafted(header, data));
    assertThrows(() => readSafetensors(file.path), UserError, expected);
  }
});

Deno.test("readSafetensors() names a file that is not there", () => {
  assertThrows(
    () => readSafetensors("/no/such.safetensors"),
    UserError,
    "Cannot read /no/such.safetensors: No such",
  );
});

Deno.test({
  name: "writeSafetensors() writes what Python reads (LOAM_PYTHON)",
  ignore: !PYTHON,
  fn() {
    using file = tempFile();
    writeSafetensors(file.path, [F32, CHUNKED, EMPTY], { note: "ü" });
    const script = `
import sys, json
from safetensors import safe_open
with safe_open(sys.argv[1], "pt") as f:
    print(json.dumps([f.metadata(), {k: [str(f.get_tensor(k).dtype), f.get_tensor(k).tolist()] for k in f.keys()}], sort_keys=True))`;
    const { stdout } = new Deno.Command(PYTHON!, { args: ["-c", script, file.path], stderr: "inherit" })
      .outputSync();
    assertEquals(JSON.parse(new TextDecoder().decode(stdout)), [
      { format: "pt", note: "ü" },
      {
        "f32": ["torch.float32", [VALUES.slice(0, 3), VALUES.slice(3)]],
        "größe": ["torch.bfloat16", [1, -2, 0, 0, 0]],
        "empty": ["torch.int32", []],
      },
    ]);
  },
});

Deno.test("fromFloat32() rounds to the nearest, half to even, and gives toFloat32() back what fits", () => {
  const step = 2 ** -8; // of bfloat16 between 1 and 2: 7 bits; half of it lies between two values
  const values = Float32Array.of(
    1,
    1 + step,
    1 + 3 * step,
    1 + step + 2 ** -20,
    -1 - step,
    0,
    2 ** 127,
    2 ** -130,
  );
  const rounded = [1, 1, 1 + 4 * step, 1 + 2 * step, -1, 0, 2 ** 127, 2 ** -130];
  assertEquals([...toFloat32(fromFloat32(values, "BF16"), "BF16")], rounded);
  const half = Float32Array.of(1, 1 + 2 ** -11, 1 + 3 * 2 ** -11, -65504, 2 ** -24, 2 ** -26);
  assertEquals([...toFloat32(fromFloat32(half, "F16"), "F16")], [1, 1, 1 + 2 ** -9, -65504, 2 ** -24, 0]);
  assertEquals([...toFloat32(fromFloat32(half, "F32"), "F32")], [...half]);
});
