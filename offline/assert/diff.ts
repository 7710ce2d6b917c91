// The text of a failed comparison: both values printed line by line, with what differs marked.

const context = 3; // equal lines shown around a difference
const maxCells = 4_000_000; // above this the longest common subsequence is not worth its time

/** Lines that differ between the printed forms of actual ("-") and expected ("+"), with the equal lines around them. */
export function diff(actual: unknown, expected: unknown): string {
  const lines = compare(print(actual).split("\n"), print(expected).split("\n"));
  const body = fold(lines).map((line) => `    ${line}\n`).join("");
  return `\n    [Diff] Actual (-) / Expected (+)\n\n${body}`;
}

/** The printed form of a value: complete, keys sorted, one element a line. */
export function print(value: unknown): string {
  return Deno.inspect(value, {
    depth: Infinity,
    sorted: true,
    trailingComma: true,
    compact: false,
    iterableLimit: Infinity,
    strAbbreviateSize: Infinity,
    getters: true,
  });
}

/** Marks each line "  " (in both), "- " (only in a) or "+ " (only in b), along a longest common subsequence. */
function compare(a: string[], b: string[]): string[] {
  if (a.length * b.length > maxCells) return compareInPlace(a, b);
  const width = b.length + 1;
  const common = new Uint32Array((a.length + 1) * width); // [i, j]: longest common subsequence of a[i..] and b[j..]
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      common[i * width + j] = a[i] === b[j]
        ? common[(i + 1) * width + j + 1]! + 1
        : Math.max(common[(i + 1) * width + j]!, common[i * width + j + 1]!);
    }
  }
  const lines: string[] = [];
  let i = 0, j = 0;
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) {
      lines.push(`  ${a[i++]}`);
      j++;
    } else if (
      j === b.length || (i < a.length && common[(i + 1) * width + j]! >= common[i * width + j + 1]!)
    ) {
      lines.push(`- ${a[i++]}`);
    } else {
      lines.push(`+ ${b[j++]}`);
    }
  }
  return lines;
}

/** The same marks, comparing line n with line n: right for what is long in practice, two arrays of one length. */
function compareInPlace(a: string[], b: string[]): string[] {
  const lines: string[] = [];
  for (let i = 0; i < Math.max(a.length, b.length); i++) {
    if (a[i] === b[i]) lines.push(`  ${a[i]}`);
    else {
      if (i < a.length) lines.push(`- ${a[i]}`);
      if (i < b.length) lines.push(`+ ${b[i]}`);
    }
  }
  return lines;
}

/** Leaves out equal lines far from any difference. */
function fold(lines: string[]): string[] {
  const near = new Set<number>();
  lines.forEach((line, i) => {
    if (line.startsWith("  ")) return;
    for (let k = i - context; k <= i + context; k++) near.add(k);
  });
  return lines.flatMap((line, i) => {
    if (near.has(i)) return [line];
    return near.has(i + 1) || i === lines.length - 1 ? ["  ..."] : [];
  });
}
