import { assertEquals } from "@std/assert";
import { EventFile } from "./tensorboard.ts";

const dir = Deno.makeTempDirSync();
Deno.test.afterAll(() => Deno.removeSync(dir, { recursive: true }));
const PYTHON = Deno.env.get("LOAM_TENSORBOARD_PYTHON");

/** CRC-32C bit by bit, masked as TFRecord says. */
function maskedCrc(data: Uint8Array): number {
  let crc = ~0;
  for (const byte of data) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0x82f63b78 : 0);
  }
  const value = BigInt(~crc >>> 0);
  return Number(((value >> 15n) + (value << 17n & 0xffffffffn) + 0xa282ead8n) & 0xffffffffn);
}

/** The data of the records of a file; checks lengths and checksums. */
function records(path: string): Uint8Array[] {
  const file = Deno.readFileSync(path), view = new DataView(file.buffer), found: Uint8Array[] = [];
  for (let at = 0; at < file.length;) {
    const length = Number(view.getBigUint64(at, true)), data = file.subarray(at + 12, at + 12 + length);
    assertEquals(view.getUint32(at + 8, true), maskedCrc(file.subarray(at, at + 8)));
    assertEquals(view.getUint32(at + 12 + length, true), maskedCrc(data));
    found.push(data);
    at += 12 + length + 4;
  }
  return found;
}

const hex = (bytes: Uint8Array) => bytes.toHex();

Deno.test("the checksum of this test gives the published value of CRC-32C", () => {
  const crc = 0xe3069283n, masked = ((crc >> 15n | crc << 17n & 0xffffffffn) + 0xa282ead8n) & 0xffffffffn;
  assertEquals(maskedCrc(new TextEncoder().encode("123456789")), Number(masked));
});

Deno.test("EventFile writes records of events: version, then a summary a step", () => {
  const one = `${dir}/one`;
  Deno.mkdirSync(one);
  using file = new EventFile(one);
  file.scalars(300, { "loss/train": 1.5, lr: 0.25 });
  const [version, step, ...more] = records(`${one}/${file.name}`);
  assertEquals(more, []);
  // Each begins with field 1, wall_time, a double; then field 2, step; then what it holds.
  assertEquals(hex(version!.subarray(9)), "1000" + "1a0d" + hex(new TextEncoder().encode("brain.Event:2")));
  const tag = (name: string) =>
    "0a" + name.length.toString(16).padStart(2, "0") + hex(new TextEncoder().encode(name));
  const values = ["0a11" + tag("loss/train") + "150000c03f", "0a09" + tag("lr") + "150000803e"].join("");
  assertEquals(hex(step!.subarray(9)), "10ac02" + "2a" + (values.length / 2).toString(16) + values);
  const wall_time = new DataView(step!.buffer, step!.byteOffset).getFloat64(1, true);
  assertEquals(Math.abs(Date.now() / 1000 - wall_time) < 60, true);
});

Deno.test("EventFile says after which step a resumed run goes on", () => {
  const two = `${dir}/two`;
  Deno.mkdirSync(two);
  using file = new EventFile(two, 7);
  const start = records(`${two}/${file.name}`)[1]!;
  assertEquals(hex(start.subarray(9)), "1008" + "3a02" + "0801");
});

Deno.test({
  name: "TensorBoard reads what EventFile writes (LOAM_TENSORBOARD_PYTHON)",
  ignore: PYTHON === undefined, // LOAM_TENSORBOARD_PYTHON: a Python with tensorboard
  fn: async () => {
    const three = `${dir}/three`;
    Deno.mkdirSync(three);
    {
      using file = new EventFile(three);
      for (let step = 1; step <= 30; step++) file.scalars(step, { loss: 10 / step });
    }
    await new Promise((resolve) => setTimeout(resolve, 1100)); // the name has seconds in it
    {
      using file = new EventFile(three, 20);
      for (let step = 21; step <= 25; step++) file.scalars(step, { loss: -step });
    }
    const script = `
import sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(sys.argv[1]); events.Reload()
print([(e.step, round(e.value, 4)) for e in events.Scalars("loss")][18:])`;
    const { stdout } = await new Deno.Command(PYTHON!, { args: ["-c", script, three], stderr: "null" })
      .output();
    assertEquals(
      new TextDecoder().decode(stdout).trim(),
      "[(19, 0.5263), (20, 0.5), (21, -21.0), (22, -22.0), (23, -23.0), (24, -24.0), (25, -25.0)]",
    );
  },
});
