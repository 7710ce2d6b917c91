// TensorBoard event files: a run seen in the tool that many already have open. A file is a row of records, each with its length
// and two checksums; a record is a protocol buffer of type Event, of which four fields are needed.
import { OutFile } from "../base/files.ts";
import { hostname } from "./owner.ts";

/** Appends scalars to an event file of its own in a directory. Close it with `using`. */
export class EventFile implements Disposable {
  /** Of the file, without the directory. */
  readonly name: string;
  readonly #file: OutFile;

  /** after: the step that a resumed run goes on after; TensorBoard then drops what earlier files say of later steps. */
  constructor(directory: string, after?: number) {
    const seconds = Math.floor(Date.now() / 1000);
    this.name = `events.out.tfevents.${seconds}.${hostname().replaceAll(" ", "_")}.${Deno.pid}`;
    this.#file = new OutFile(`${directory}/${this.name}`, "append");
    try {
      this.#write(event(0, text(3, "brain.Event:2"))); // file_version
      if (after !== undefined) this.#write(event(after + 1, bytes(7, varint(1, 1)))); // session_log: START
    } catch (error) {
      this[Symbol.dispose]();
      throw error;
    }
  }

  /** Appends one value of each name for a step. */
  scalars(step: number, values: Record<string, number>): void {
    const summary = Object.entries(values).map(([tag, value]) =>
      bytes(1, join(text(1, tag), float(2, value)))
    );
    this.#write(event(step, bytes(5, join(...summary))));
  }

  /** Closes the file. */
  [Symbol.dispose](): void {
    this.#file[Symbol.dispose]();
  }

  /** Writes a record: length, its checksum, data, its checksum. */
  #write(data: Uint8Array): void {
    const record = new Uint8Array(12 + data.length + 4), view = new DataView(record.buffer);
    view.setBigUint64(0, BigInt(data.length), true);
    view.setUint32(8, maskedCrc(record.subarray(0, 8)), true);
    record.set(data, 12);
    view.setUint32(12 + data.length, maskedCrc(data), true);
    this.#file.write(record);
  }
}

// ---- protocol buffers: a field is its number and kind, then its value

function event(step: number, content: Uint8Array): Uint8Array {
  return join(double(1, Date.now() / 1000), varint(2, step), content);
}

function varint(field: number, value: number): Uint8Array {
  return join(Uint8Array.of(field << 3), base128(value));
}

function double(field: number, value: number): Uint8Array {
  return join(Uint8Array.of(field << 3 | 1), new Uint8Array(Float64Array.of(value).buffer));
}

function float(field: number, value: number): Uint8Array {
  return join(Uint8Array.of(field << 3 | 5), new Uint8Array(Float32Array.of(value).buffer));
}

function bytes(field: number, value: Uint8Array): Uint8Array {
  return join(Uint8Array.of(field << 3 | 2), base128(value.length), value);
}

function text(field: number, value: string): Uint8Array {
  return bytes(field, new TextEncoder().encode(value));
}

/** A whole number, seven bits a byte, the lowest first; the top bit says that more follow. */
function base128(value: number): Uint8Array {
  const digits: number[] = [];
  for (; value >= 128; value = Math.floor(value / 128)) digits.push(value % 128 | 128);
  return Uint8Array.from([...digits, value]);
}

function join(...parts: Uint8Array[]): Uint8Array {
  const whole = new Uint8Array(parts.reduce((n, part) => n + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

// ---- checksums: CRC-32C, rotated and offset as TFRecord wants it

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  for (let bit = 0; bit < 8; bit++) byte = byte & 1 ? byte >>> 1 ^ 0x82f63b78 : byte >>> 1;
  return byte;
});

function maskedCrc(data: Uint8Array): number {
  let crc = 0xffffffff;
  for (const byte of data) crc = crc >>> 8 ^ CRC_TABLE[(crc ^ byte) & 255]!;
  crc = ~crc;
  return ((crc >>> 15 | crc << 17) + 0xa282ead8) >>> 0;
}
