// Each library exports the functions of kernels.h and nothing else, so that two of them, or one and a BLAS, never mix.
import { assertEquals } from "@std/assert";
import { libraryExists, libraryUrl } from "./library.ts";

/** Names that a shared object of 64-bit Linux offers to the linker, sorted. */
function exportsOf(file: URL): string[] {
  const bytes = Deno.readFileSync(file), view = new DataView(bytes.buffer);
  const offset = (at: number) => Number(view.getBigUint64(at, true));
  const sections = Array.from({ length: view.getUint16(60, true) }, (_, i) => {
    const at = offset(40) + i * 64; // a section header: type at 4, offset at 24, size at 32, link at 40
    return { type: view.getUint32(at + 4, true), at: offset(at + 24), size: offset(at + 32), link: at + 40 };
  });
  const table = sections.find(({ type }) => type === 11)!; // SHT_DYNSYM
  const strings = sections[view.getUint32(table.link, true)]!.at;
  const found: string[] = [];
  for (let at = table.at; at < table.at + table.size; at += 24) {
    const isLocal = view.getUint8(at + 4) >> 4 === 0, isDefined = view.getUint16(at + 6, true) !== 0;
    if (isLocal || !isDefined) continue;
    const name = strings + view.getUint32(at, true);
    found.push(new TextDecoder().decode(bytes.subarray(name, bytes.indexOf(0, name))));
  }
  return found.sort();
}

const header = Deno.readTextFileSync(new URL("../kernels.h", import.meta.url));
const declared = Array.from(header.matchAll(/^int (\w+)\(/gm), ([, name]) => name!).sort();

for (const variant of ["cpu", "cpu_avx2", "cpu_avx512", "emu", "cuda"]) {
  Deno.test({
    name: `libloam_${variant} exports exactly the functions of kernels.h`,
    ignore: Deno.build.os !== "linux" || !libraryExists(variant),
    fn: () => assertEquals(exportsOf(libraryUrl(variant)), declared),
  });
}
