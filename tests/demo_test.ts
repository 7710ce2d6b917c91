// The demo of run.sh: its text, and how its model begins to learn it. What the README says of the whole run was measured; this
// keeps its first steps true.
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { sha256OfFile } from "../base/files.ts";
import { corpus, main } from "../tools/demo_corpus.ts";
import { emptyDirectory, metrics, ROOT, Running, succeed } from "./testing.ts";

Deno.test("corpus() makes a line of a verse, and an empty line between chapters", () => {
  const verses = {
    "Genesis 1:30": "And to every beast of the earth: and it was so.",
    "Genesis 1:31": "And God saw every thing, and, behold, [it was] very good.",
    "Genesis 2:1": "# Thus the heavens and the earth were finished.",
    "Jude 1:1": "Jude, the servant.",
    "Revelation 1:1": "The Revelation.",
  };
  assertEquals(
    corpus(verses),
    "And to every beast of the earth: and it was so.\nAnd God saw every thing, and, behold, it was very good.\n\n" +
      "Thus the heavens and the earth were finished.\n\nJude, the servant.\n\nThe Revelation.\n",
  );
});

Deno.test("the demo of run.sh begins to learn as it did when it was measured", async () => {
  const directory = emptyDirectory(), script = Deno.readTextFileSync(new URL("run.sh", ROOT));
  const valueOf = (name: string) => new RegExp(`^${name}=(\\S+)`, "m").exec(script)![1]!;
  /** The flags that run.sh gives a task, with its data below the directory. */
  const flagsOf = (task: string) => {
    const [, flags] = new RegExp(`deno task -q ${task} ([^|]+) \\|\\|`).exec(script)!;
    return flags!.replaceAll("\\\n", "").replace(/\$(\w+)/g, (_, name) => valueOf(name))
      .replace(/\b(data|runs)\//g, `${directory}/$1/`).trim().split(/\s+/);
  };
  for (const folder of ["data", "runs"]) Deno.mkdirSync(`${directory}/${folder}`);
  await main(`${directory}/data/demo.txt`);
  assertEquals(sha256OfFile(`${directory}/data/demo.txt`), SHA256);
  await succeed("tokenizer", ...flagsOf("tokenizer"));
  assertStringIncludes(
    await succeed("prepare", ...flagsOf("prepare")),
    ": 1,328,533 tokens (., vocabulary 1,024) in ",
  );
  const running = new Running("train", ...flagsOf("train"), "--threads=1", "--log_interval=10");
  await running.line("step 50/3000");
  running.signal("SIGTERM");
  const { code, stdout, stderr } = await running.end();
  assertEquals(code, 0, stderr);
  assertStringIncludes(stdout, "model 0.9M parameters, 0.8M without embeddings;");
  const steps = metrics(`${directory}/${valueOf("run")}`).slice(0, 50);
  const mean = steps.reduce((sum, { loss }) => sum + loss!, 0) / steps.length;
  assert(Math.abs(mean - 5.945) < 0.05, `mean loss of 50 steps: ${mean}`); // 5.947 in float32, 5.940 with bfloat16 products
});

const SHA256 = "e93dca6c3e5ed395201637c2fa1d3377670146b565d1bde20ee3219f4836a9d3";
