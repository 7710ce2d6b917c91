// Walks over JSON as bytes, for a tokenizer.json of 30 MB: most of it are two long lists of strings, which JSON.parse would
// turn into 100 MB of objects. Takes for granted that the JSON is well-formed; where it is not, it throws a SyntaxError or
// finds something else than JSON.parse would.

const QUOTE = 0x22, COMMA = 0x2c, COLON = 0x3a, OPEN_LIST = 0x5b, BACKSLASH = 0x5c, CLOSE_LIST = 0x5d;
const OPEN_OBJECT = 0x7b, CLOSE_OBJECT = 0x7d;

/** A place in JSON text that moves forward. */
export class JsonWalker {
  /** The byte that comes next. */
  at: number;
  readonly #bytes: Uint8Array;

  /** at: the byte to begin with. */
  constructor(bytes: Uint8Array, at = 0) {
    this.#bytes = bytes;
    this.at = at;
  }

  /** Steps into an object or list. */
  enter(): void {
    const open = this.#next();
    if (open !== OPEN_OBJECT && open !== OPEN_LIST) throw this.#unexpected();
    this.at++;
  }

  /** Steps to the next key or item of an object or list and returns true, or out of it and returns false. */
  step(): boolean {
    let byte = this.#next();
    if (byte === COMMA) {
      this.at++;
      byte = this.#next();
    }
    if (byte !== CLOSE_OBJECT && byte !== CLOSE_LIST) return true;
    this.at++;
    return false;
  }

  /** Steps from behind a key to its value. */
  toValue(): void {
    if (this.#next() !== COLON) throw this.#unexpected();
    this.at++;
    this.#next();
  }

  /** Whether a list comes next. */
  isList(): boolean {
    return this.#next() === OPEN_LIST;
  }

  /** Steps over a string, number, list or object of whatever depth. */
  skip(): void {
    let depth = 0;
    do {
      const byte = this.#next();
      if (byte === QUOTE) this.#skipString();
      else {
        if (byte === OPEN_OBJECT || byte === OPEN_LIST) depth++;
        else if (byte === CLOSE_OBJECT || byte === CLOSE_LIST) depth--;
        this.at++;
        while (isOfWord(byte) && isOfWord(this.#bytes[this.at]!)) this.at++;
      }
    } while (depth > 0);
  }

  /** Steps over a whole number and returns it. */
  number(): number {
    let value = 0, digit = this.#next() - 0x30;
    if (!(digit >= 0 && digit <= 9)) throw this.#unexpected();
    for (; digit >= 0 && digit <= 9; digit = this.#bytes[++this.at]! - 0x30) value = 10 * value + digit;
    return value;
  }

  /** Steps over a string and writes its UTF-16 units to units at n, as many as there is room for; returns the new n. */
  string(units: Uint16Array, n: number): number {
    if (this.#next() !== QUOTE) throw this.#unexpected();
    const bytes = this.#bytes;
    for (this.at++;;) {
      const byte = bytes[this.at++]!;
      if (byte === QUOTE) return n;
      if (byte === undefined) throw this.#unexpected();
      if (byte === BACKSLASH) units[n++] = this.#escape();
      else if (byte < 0x80) units[n++] = byte;
      else if (byte < 0xe0) units[n++] = (byte & 0x1f) << 6 | this.#low();
      else if (byte < 0xf0) units[n++] = (byte & 0x0f) << 12 | this.#low() << 6 | this.#low();
      else {
        const point = ((byte & 7) << 18 | this.#low() << 12 | this.#low() << 6 | this.#low()) - 0x10000;
        units[n++] = 0xd800 | point >> 10;
        units[n++] = 0xdc00 | point & 0x3ff;
      }
    }
  }

  /** The next byte that is not white space. */
  #next(): number {
    const bytes = this.#bytes;
    while (bytes[this.at]! <= 0x20) this.at++;
    if (this.at >= bytes.length) throw this.#unexpected();
    return bytes[this.at]!;
  }

  #skipString(): void {
    const bytes = this.#bytes;
    for (this.at++; bytes[this.at] !== QUOTE; this.at++) {
      if (bytes[this.at] === BACKSLASH) this.at++;
      if (this.at >= bytes.length) throw this.#unexpected();
    }
    this.at++;
  }

  #escape(): number {
    const letter = String.fromCharCode(this.#bytes[this.at++]!);
    if (letter !== "u") return "\b\f\n\r\t"["bfnrt".indexOf(letter)]?.charCodeAt(0) ?? letter.charCodeAt(0);
    const digits = String.fromCharCode(...this.#bytes.subarray(this.at, this.at += 4));
    return parseInt(digits, 16);
  }

  /** The low bits of the next byte of a character. */
  #low(): number {
    return this.#bytes[this.at++]! & 0x3f;
  }

  #unexpected(): SyntaxError {
    return new SyntaxError(`its JSON is not as expected at byte ${this.at}`);
  }
}

/** Whether a byte belongs to a number or a word such as true. */
function isOfWord(byte: number): boolean {
  return byte > 0x20 && byte !== COMMA && byte !== COLON && byte !== QUOTE && byte !== OPEN_LIST &&
    byte !== CLOSE_LIST && byte !== OPEN_OBJECT && byte !== CLOSE_OBJECT;
}
