import { assertEquals, assertRejects } from "@std/assert";
import { UserError } from "./errors.ts";
import { sha256OfFile } from "./files.ts";
import { beginSums } from "./sha256.ts";

Deno.test("beginSums() sums up many bytes in Workers, and says which file cannot be read", async () => {
  const dir = Deno.makeTempDirSync();
  const [empty, small, large] = ["empty", "small", "large"].map((name) => `${dir}/${name}`) as [
    string,
    string,
    string,
  ];
  Deno.writeFileSync(empty, new Uint8Array());
  Deno.writeTextFileSync(small, "abc");
  using file = Deno.openSync(large, { write: true, create: true });
  file.truncateSync(1 << 28); // zeros that take no space
  const sums = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
  ];
  assertEquals(await beginSums([empty, small])(), sums);
  const [zeros, ...others] = await beginSums([large, empty, small, empty])();
  assertEquals(zeros, sha256OfFile(large));
  assertEquals(others, [...sums, sums[0]!]);
  await assertRejects(
    beginSums([large, `${dir}/no`]),
    UserError,
    `Cannot read ${dir}/no: No such file`,
  );
  Deno.removeSync(dir, { recursive: true });
});
