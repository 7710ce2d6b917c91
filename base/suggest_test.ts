import { assertEquals } from "@std/assert";
import { meant, meantFlag, nearest } from "./suggest.ts";

const NAMES = ["n_layer", "n_head", "n_kv_head", "learning_rate", "min_lr", "max_iters"];

Deno.test("nearest() is the name with the fewest letters changed, the first of equals", () => {
  const expected: [string, string | undefined][] = [
    ["n_layers", "n_layer"],
    ["nlayer", "n_layer"],
    ["n_kvhead", "n_kv_head"],
    ["max_itres", "max_iters"], // two neighbours that changed places are one edit
    ["learn", "learning_rate"], // the beginning of one name alone
    ["n_", undefined],
    ["lr", undefined], // four edits from min_lr
    ["dropout", undefined],
    ["", undefined],
  ];
  for (const [name, known] of expected) assertEquals(nearest(name, NAMES), known, name);
  assertEquals(nearest("bca", ["bac", "abc"]), "bac");
  assertEquals(nearest("a", []), undefined);
});

Deno.test("meant() lists all names where none is near", () => {
  assertEquals(meant("smal", ["tiny", "small"]), "did you mean small?");
  assertEquals(meant("/dev/null", ["tiny", "small"]), "there are tiny, small");
});

Deno.test("meantFlag() offers only flags that the command has", () => {
  assertEquals(meantFlag("data", ["input", "out", "tokenizer"]), "did you mean --input?");
  assertEquals(meantFlag("data", ["train", "out", "vocab_size"]), "did you mean --train?");
  assertEquals(meantFlag("data", ["dir", "doc"]), "did you mean --dir?");
  assertEquals(meantFlag("out_dir", ["input", "out"]), "did you mean --out?");
  assertEquals(meantFlag("model", ["run", "checkpoint"]), "did you mean --checkpoint?");
  assertEquals(meantFlag("lr", ["json", "help"]), "see --help");
});
