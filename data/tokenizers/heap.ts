// A binary heap of numbers in one array that grows: pushing and popping make no garbage.

/** Gives back the smallest number first. */
export class Heap {
  /** Numbers in it. */
  length = 0;
  #values = new Float64Array(1024);

  /** Puts a number in. */
  push(value: number): void {
    if (this.length === this.#values.length) {
      const larger = new Float64Array(2 * this.length);
      larger.set(this.#values);
      this.#values = larger;
    }
    const values = this.#values;
    let i = this.length++;
    while (i > 0) {
      const parent = i - 1 >> 1;
      if (values[parent]! <= value) break;
      values[i] = values[parent]!;
      i = parent;
    }
    values[i] = value;
  }

  /** Takes the smallest number out. The heap must not be empty. */
  pop(): number {
    const values = this.#values, smallest = values[0]!, last = values[--this.length]!, length = this.length;
    let i = 0;
    for (;;) {
      let child = 2 * i + 1;
      if (child >= length) break;
      if (child + 1 < length && values[child + 1]! < values[child]!) child++;
      if (values[child]! >= last) break;
      values[i] = values[child]!;
      i = child;
    }
    values[i] = last;
    return smallest;
  }
}
