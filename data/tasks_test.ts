import { assertEquals, assertThrows } from "@std/assert";
import { UserError } from "../base/errors.ts";
import { readTasks } from "./tasks.ts";
import { inDirectory, withFiles } from "./testing.ts";

const HOW =
  'each line should be {"context": "...", "choices": ["...", "..."], "label": 0} or {"text": "..."}';

Deno.test("readTasks() reads questions and texts, each of the task that its line or its file names", () => {
  const lines = [
    { context: "The sky is", choices: ["blue", "square"], label: 0, id: 7 },
    { task: "other", context: "", choices: ["a", "b", "c"], label: 2, target_delimiter: "" },
    { task: "texts", text: "So long\nand wide" },
    { context: "Rain", choices: ["falls", "sings"], label: 1 },
  ];
  const text = lines.map((line) => JSON.stringify(line)).join("\r\n\n") + "\n";
  return withFiles({ "small.jsonl": "\ufeff" + text }, (dir) => {
    const path = `${dir}/small.jsonl`, place = (line: number) => `"${path}", line ${line}`;
    assertEquals(readTasks([path]), [
      {
        name: "small",
        kind: "questions",
        items: [
          {
            place: place(1),
            context: "The sky is",
            choices: ["blue", "square"],
            target_delimiter: " ",
            label: 0,
          },
          { place: place(7), context: "Rain", choices: ["falls", "sings"], target_delimiter: " ", label: 1 },
        ],
      },
      {
        name: "other",
        kind: "questions",
        items: [{ place: place(3), context: "", choices: ["a", "b", "c"], target_delimiter: "", label: 2 }],
      },
      { name: "texts", kind: "texts", items: [{ place: place(5), text: "So long\nand wide" }] },
    ]);
  });
});

const WRONG: [line: string, why: string][] = [
  ["[1]", `it is [1]; ${HOW}`],
  ['{"query": "a", "gold": 1}', `its fields are query, gold; ${HOW}`],
  [
    '{"context": "a", "choices": ["b"], "label": 0}',
    'choices is ["b"], should be a list of at least two texts that are not empty',
  ],
  [
    '{"context": "a", "choices": ["b", ""], "label": 0}',
    'choices is ["b",""], should be a list of at least two texts that are not empty',
  ],
  [
    '{"context": "a", "choices": "bc", "label": 0}',
    'choices is "bc", should be a list of at least two texts that are not empty',
  ],
  [
    '{"context": "a", "choices": ["b", "c"], "label": 2}',
    "label is 2, should be the place of the right choice, from 0 to 1",
  ],
  [
    '{"context": "a", "choices": ["b", "c"], "label": "1"}',
    'label is "1", should be the place of the right choice, from 0 to 1',
  ],
  [
    '{"context": "a", "choices": ["b", "c"]}',
    "label is missing, should be the place of the right choice, from 0 to 1",
  ],
  ['{"choices": ["b", "c"], "label": 0}', "context is missing, should be a text"],
  [
    '{"context": "a", "choices": ["b", "c"], "label": 0, "target_delimiter": null}',
    "target_delimiter is null, should be a text",
  ],
  ['{"text": " \\n"}', 'text is " \\n", should be a text that is not empty'],
  ['{"text": "a", "task": 3}', "task is 3, should be a name"],
  ['{"text": "a", "task": "good"}', "it is one of texts, the task good began with questions"],
];

Deno.test("readTasks() names the file, the line and what is wrong there", () =>
  inDirectory((dir) => {
    const path = `${dir}/good.jsonl`, good = '{"context": "a", "choices": ["b", "c"], "label": 0}\n';
    const refused = (text: string) => {
      Deno.writeTextFileSync(path, text);
      return assertThrows(() => readTasks([path]), UserError).message;
    };
    for (const [line, why] of WRONG) {
      assertEquals(refused(`${good}${line}\n`), `Cannot evaluate on "${path}", line 2: ${why}`);
    }
    const broken = refused(good + '{"context": "a"');
    assertEquals(
      broken.startsWith(`Cannot evaluate on "${path}", line 2: `) && broken.endsWith(`; ${HOW}`),
      true,
      broken,
    );
    for (const empty of ["", "\n \n"]) {
      assertEquals(refused(empty), `Cannot evaluate on "${path}": it is empty; ${HOW}`);
    }
    Deno.writeTextFileSync(path, good);
    assertThrows(
      () => readTasks([path, path]),
      UserError,
      "Cannot evaluate on two tasks that are called good",
    );
    assertThrows(
      () => readTasks([`${dir}/none.jsonl`]),
      UserError,
      `Cannot read "${dir}/none.jsonl": there is no such file`,
    );
  }));

/** llm.c's file of two questions, as its write_evalfile() writes it. */
function evalBin(): Uint8Array {
  const header = new Int32Array(256);
  header.set([20240522, 1, 2, 34]);
  const first = [65535, 2 * 16, 0, 1, 4, 2, 10, 11, 1, 12, 1, 13, 1, 14, 1, 15]; // a context of 2 tokens, 4 choices of one
  const second = [65535, 2 * 17, 1, 3, 4, 1, 50256, 2, 20, 21, 1, 22, 1, 23, 2, 24, 25];
  return Uint8Array.from(
    [header, Uint16Array.from([...first, ...second])].flatMap(({ buffer }) => [...new Uint8Array(buffer)]),
  );
}

Deno.test("readTasks() reads llm.c's evaluation files, and refuses what is none", () =>
  inDirectory((dir) => {
    const path = `${dir}/hellaswag_val.bin`, bytes = evalBin();
    Deno.writeFileSync(path, bytes);
    assertEquals(readTasks([path]), [{
      name: "hellaswag_val",
      kind: "token questions",
      items: [
        { place: `"${path}", example 0`, label: 1, context: [10, 11], choices: [[12], [13], [14], [15]] },
        {
          place: `"${path}", example 1`,
          label: 3,
          context: [50256],
          choices: [[20, 21], [22], [23], [24, 25]],
        },
      ],
    }]);
    const refuse = (change: (words: Uint16Array) => void, why: string, end = bytes.length) => {
      const copy = bytes.slice();
      change(new Uint16Array(copy.buffer));
      Deno.writeFileSync(path, copy.subarray(0, end));
      const message = `Cannot evaluate on "${path}": ${why}; copy or write it again`;
      assertEquals(assertThrows(() => readTasks([path]), UserError).message, message);
    };
    const set = (place: number, value: number) => (words: Uint16Array) => words[place] = value;
    refuse(set(0, 1), "it begins with 20185089 1, should be 20240522 1");
    refuse(set(2, 7), "it begins with 20240522 7, should be 20240522 1");
    refuse(set(4, 1), "it has 1090 bytes, its 1 examples have 1056");
    refuse(set(4, 3), "example 2 begins with NaN,NaN,NaN,NaN,NaN");
    refuse(set(512 + 3, 4), "example 0 begins with 65535,32,0,4,4");
    refuse(set(512 + 1, 34), "example 0 has 32 bytes, says 34");
    refuse(set(512 + 5, 0), "example 0 is not whole");
    refuse(set(512 + 7, 50257), "example 0 has token 50257, GPT-2's are below 50257");
    refuse(() => {}, "example 1 is not whole", bytes.length - 2);
    refuse(() => {}, "it begins with 0 0, should be 20240522 1", 0);
  }));
