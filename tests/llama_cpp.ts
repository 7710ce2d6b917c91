// What llama.cpp makes of GGUF files, where LOAM_LLAMA_CPP names a directory in which `npm install node-llama-cpp` has run.
import { assertEquals } from "@std/assert";
import { freshPath } from "./testing.ts";

/** That directory. */
export const LLAMA_CPP = Deno.env.get("LOAM_LLAMA_CPP");

/** What llama.cpp is asked about a file, and what it says. */
export type Question = { path: string; texts: string[]; prompt: number[]; tokens: number };
export type Answer = {
  bos: number;
  eos: number;
  adds_bos: boolean;
  ids: number[][];
  written: number[];
  text: string;
};

/** Asks llama.cpp about models, in one process. */
export async function askLlamaCpp(questions: Question[]): Promise<Answer[]> {
  const [asked, answered] = [freshPath(), freshPath()];
  Deno.writeTextFileSync(asked, JSON.stringify(questions));
  const args = ["eval", "-q", LLAMA, asked, answered];
  const { code, stderr } = await new Deno.Command(Deno.execPath(), { args, cwd: LLAMA_CPP!, stdin: "null" })
    .output();
  assertEquals(code, 0, new TextDecoder().decode(stderr));
  return JSON.parse(Deno.readTextFileSync(answered));
}

const LLAMA = `
import { getLlama, LlamaLogLevel } from 'node-llama-cpp';
const quiet = { build: "never", progressLogs: false, logLevel: LlamaLogLevel.error };
const llama = await getLlama({ gpu: false, maxThreads: 1, ...quiet }), answers = [];
for (const { path, texts, prompt, tokens } of JSON.parse(Deno.readTextFileSync(Deno.args[0]))) {
  const model = await llama.loadModel({ modelPath: path }), written = [];
  const ids = texts.map((text) => model.tokenize(text, false));
  if (tokens > 0) {
    const context = await model.createContext({ contextSize: prompt.length + tokens, threads: 1 });
    for await (const token of context.getSequence().evaluate(prompt, { temperature: 0 })) {
      written.push(token);
      if (written.length === tokens) break;
    }
    await context.dispose();
  }
  const { bos, eos, shouldPrependBosToken: adds_bos } = model.tokens;
  answers.push({ bos, eos, adds_bos, ids, written, text: written.map((id) => model.detokenize([id])).join("") });
  await model.dispose();
}
Deno.writeTextFileSync(Deno.args[1], JSON.stringify(answers));
Deno.exit(0);
`;
