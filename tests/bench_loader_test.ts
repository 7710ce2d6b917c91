// bench/loader.ts runs and says what it should, on a dataset of some megabytes. Its figures are not looked at here.
import { assert, assertEquals, assertMatch } from "@std/assert";
import type { Report } from "../bench/loader.ts";
import { libraryExists } from "../ffi/library.ts";
import { freshPath, ROOT } from "./testing.ts";

Deno.test({
  name: "loader.ts times batches and watches resident memory",
  ignore: Deno.build.os !== "linux" || !libraryExists("cpu"),
  fn: async () => {
    const json = freshPath();
    const flags = ["--gb=0.004", "--shard_tokens=300000", "--steps=5", "--batches=2", `--json=${json}`];
    const args = ["run", "-q", "-P=bench", "bench/loader.ts", ...flags];
    const { code, stdout } = await new Deno.Command(Deno.execPath(), { args, cwd: ROOT }).output();
    assertEquals(code, 0);
    assertMatch(new TextDecoder().decode(stdout), /^tiny, B=16 T=128, 0\.0 GB in 8 shards$/m);

    const { dataset, tiny, memory }: Report = JSON.parse(Deno.readTextFileSync(json));
    assertEquals(dataset, { bytes: 4_000_000, shards: 8 });
    for (const { us, us_least, us_most } of [tiny.batch, tiny.batch_of_mix]) {
      assert(0 < us_least && us_least <= us && us <= us_most);
    }
    assertEquals(tiny.share_of_step, tiny.batch.us / 1000 / tiny.step_ms);
    assertEquals(memory.samples.map(({ read_mb }) => Math.round(read_mb * 10)), [
      0,
      4,
      8,
      12,
      16,
      20,
      24,
      28,
      32,
      36,
      40,
    ]);
    for (const { rss_mb, file_mb, anon_mb } of memory.samples) {
      assert(file_mb > 0 && anon_mb > 0 && file_mb + anon_mb <= rss_mb + 1);
    }
  },
});
