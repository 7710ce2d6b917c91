import { assert, assertEquals, assertRejects, assertStringIncludes, assertThrows } from "@std/assert";
import { createHash } from "node:crypto";
import { UserError } from "../base/errors.ts";
import { watchChanges } from "../base/files.ts";
import { environment } from "../base/testing.ts";
import type { Patience } from "../data/read/http.ts";
import { type Answer, ranged, type Request, withServer } from "../data/read/testing_server.ts";
import { open } from "../ffi/library.ts";
import { emptyDirectory, list, modelDirectory } from "../tests/testing.ts";
import { loadModel } from "./checkpoint.ts";
import { directoryOf, download } from "./download.ts";

open("cpu");

const HASTY: Patience = { retry_ms: 1, silence_ms: 10_000 };
const COMMIT = "0123456789abcdef0123456789abcdef01234567";
const URL = "hf://o/n";

type Files = Record<string, Uint8Array<ArrayBuffer>>;

/** The files of a directory, and one that is of no use here. */
function filesIn(directory: string): Files {
  const files = Object.fromEntries(
    list(directory).map((name) => [name, Deno.readFileSync(`${directory}/${name}`)]),
  );
  return { ...files, "pytorch_model.bin": new Uint8Array(1000) };
}

/** A hub that has one model: large files by their sha256, the others as git has them. */
function hubOf(files: Files, change: (name: string, answer: Answer) => Answer = (_, answer) => answer) {
  const json = (value: unknown): Answer => ({ body: new TextEncoder().encode(JSON.stringify(value)) });
  const hash = (kind: string, ...parts: (string | Uint8Array)[]) =>
    parts.reduce((hash, part) => hash.update(part), createHash(kind)).digest("hex");
  return (request: Request): Answer => {
    if (request.path === "/api/models/o/n/revision/main") return json({ sha: COMMIT });
    if (request.path === `/api/models/o/n/tree/${COMMIT}`) {
      const list = Object.entries(files).map(([path, bytes]) => {
        const oid = hash("sha1", `blob ${bytes.length}\0`, bytes), large = bytes.length > 4000;
        return {
          type: "file",
          path,
          size: bytes.length,
          oid,
          ...(large ? { lfs: { oid: hash("sha256", bytes) } } : {}),
        };
      });
      return json([...list, { type: "directory", path: "original", size: 0, oid: "" }]);
    }
    const [, name] = /^\/o\/n\/resolve\/(?:[0-9a-f]{40})\/(.+)$/.exec(request.path) ?? [];
    const file = name === undefined ? undefined : files[name];
    return file === undefined ? { status: 404 } : change(name!, ranged(file, request));
  };
}

/** Downloads from such a hub; returns what was printed, and the paths that were asked for. */
async function fetchFrom(
  answer: (request: Request, number: number) => Answer,
  directory: string,
): Promise<{ lines: string[]; asked: string[]; sent: number }> {
  const lines: string[] = [];
  let asked: string[] = [], sent = 0;
  await withServer(answer, async (server) => {
    try {
      using _ = environment({ HF_ENDPOINT: server.url, HF_TOKEN: "hf_secret" });
      await download(URL, directory, (line) => lines.push(line), HASTY);
    } finally {
      assert(server.requests.every(({ headers }) => headers.get("authorization") === "Bearer hf_secret"));
      asked = server.requests.map(({ path }) => path.replace(/.*\//, ""));
      sent = server.sent;
    }
  });
  return { lines, asked, sent };
}

Deno.test("download() fetches what a model needs, once, and loadModel() reads it", async () => {
  const model = await modelDirectory(), directory = `${emptyDirectory()}/models/o/n`;
  const { lines, asked } = await fetchFrom(hubOf(filesIn(model)), directory);
  assertEquals(list(directory), ["SHA256SUMS", ...list(model)]);
  assertEquals(list(`${directory}/..`), ["n"]);
  assertEquals(loadModel(directory).model.norm.toArray(), loadModel(model).model.norm.toArray());
  assert(!asked.includes("pytorch_model.bin"));
  assertStringIncludes(lines.join("\n"), "  model.safetensors: ");
  assertEquals(lines.at(-1), `${directory}: o/n at commit ${COMMIT}`);

  const again = await fetchFrom(hubOf({}), directory);
  assertEquals([again.lines, again.asked], [
    [`${directory} is there already; remove it to download it again`],
    [],
  ]);
  Deno.writeTextFileSync(`${directory}/model.safetensors`, "x", { append: true });
  assertThrows(() => loadModel(directory), UserError, "it has ");
  Deno.removeSync(`${directory}/../..`, { recursive: true });
});

Deno.test("download() goes on at the byte where it was interrupted, and fetches no whole file twice", async () => {
  const files = filesIn(await modelDirectory()), directory = `${emptyDirectory()}/n`;
  let broken = true;
  const cut = (name: string, answer: Answer) =>
    // the connection breaks, and then there is no more server
    name === "model.safetensors" && broken && answer.body!.length > 1
      ? answer.body!.length === files[name]!.length ? { ...answer, cut: 9000 } : { status: 404 }
      : answer;
  await assertRejects(() => fetchFrom(hubOf(files, cut), directory), UserError, "the server says 404");
  const parent = directory.replace(/n$/, ""), temporary = `${parent}.n.${COMMIT.slice(0, 12)}.tmp`;
  assertEquals(list(parent), [`.n.${COMMIT.slice(0, 12)}.tmp`]);
  assertEquals(Deno.statSync(`${temporary}/model.safetensors.part`).size, 9000);
  Deno.mkdirSync(`${parent}.n.of_another.tmp`);
  broken = false;
  const { lines, asked, sent } = await fetchFrom(hubOf(files), directory);
  assert(!asked.includes("config.json") && sent < files["model.safetensors"]!.length);
  assertStringIncludes(lines.join("\n"), " from byte 9000 on, ");
  assertEquals(list(parent), ["n"]);
  assertEquals(Deno.readFileSync(`${directory}/model.safetensors`), files["model.safetensors"]);
  Deno.removeSync(parent, { recursive: true });
});

Deno.test("download() refuses in one line, and leaves nothing under the name of the model", async () => {
  const files = filesIn(await modelDirectory());
  const flip = (file: string) => (name: string, answer: Answer): Answer =>
    name === file && answer.body!.length > 1
      ? { ...answer, body: answer.body!.map((byte) => byte ^ 1) }
      : answer;
  const without = (...names: string[]) =>
    Object.fromEntries(Object.entries(files).filter(([name]) => !names.includes(name)));
  const config = (change: object) => {
    const json = { ...JSON.parse(new TextDecoder().decode(files["config.json"])), ...change };
    return { ...files, "config.json": new TextEncoder().encode(JSON.stringify(json)) };
  };
  const index = (map: object) => ({
    "model.safetensors.index.json": new TextEncoder().encode(JSON.stringify({ weight_map: map })),
  });
  const advice = "name another model or revision with its weights in safetensors";
  const cases: [(request: Request) => Answer, string | RegExp][] = [
    [
      hubOf(files, flip("model.safetensors")),
      /model.safetensors": the sha256 of what came is \w{64}, the hub says \w{64}; /,
    ],
    [
      hubOf(files, flip("tokenizer_config.json")),
      /_config.json": the sha1 in git of what came is \w{40}, the hub says /,
    ],
    [hubOf(without("config.json")), `Cannot download "${URL}": it has no config.json; ${advice}`],
    [
      hubOf(without("model.safetensors")),
      `Cannot download "${URL}": it has no model.safetensors, but pytorch_model.bin, which loam does not read; ${advice}`,
    ],
    [
      hubOf({ ...without("model.safetensors"), ...index({ a: "b.safetensors" }) }),
      `it has no b.safetensors, which its model.safetensors.index.json names; ${advice}`,
    ],
    [
      hubOf({ ...without("model.safetensors"), ...index({ a: "../b.safetensors" }) }),
      'its weight_map has "../b.safetensors", should have names of files beside it; ',
    ],
    [hubOf({ ...without("model.safetensors"), ...index({}) }), "its weight_map is empty; "],
    [
      hubOf(config({ model_type: "gemma" })),
      `Cannot load config.json of ${URL}: model_type is "gemma", and should be one of `,
    ],
    [
      hubOf(config({ quantization_config: { bits: 4 } })),
      'quantization_config is {"bits":4}, which loam does not compute',
    ],
    [
      () => ({ status: 401 }),
      "the server says 401 Unauthorized; check the address, or set HF_TOKEN to a token that may read it",
    ],
  ];
  for (const [answer, message] of cases) {
    const directory = `${emptyDirectory()}/n`;
    const error = await assertRejects(() => fetchFrom(answer, directory), UserError);
    if (typeof message === "string") assertStringIncludes(error.message, message);
    else assert(message.test(error.message), error.message);
    assert(!error.message.includes("\n"));
    assertThrows(() => Deno.statSync(directory), Deno.errors.NotFound);
    if (!error.message.includes("what came")) continue; // what was wrong is not there to go on from
    assertEquals(
      (await fetchFrom(hubOf(files), directory)).lines.at(-1),
      `${directory}: o/n at commit ${COMMIT}`,
    );
  }
});

Deno.test("download() says in one line that the disk is full, and goes on later", async () => {
  const files = filesIn(await modelDirectory()), directory = `${emptyDirectory()}/n`;
  let left = 20_000;
  const full = ({ kind, bytes = 0 }: { kind: string; bytes?: number }) => {
    if (kind === "write" && (left -= bytes) < 0) throw new Error("No space left on device (os error 28)");
  };
  {
    using _ = watchChanges(full);
    const error = await assertRejects(() => fetchFrom(hubOf(files), directory), UserError);
    assert(
      /^Cannot write .*\.part: No space left on device \(os error 28\)$/.test(error.message),
      error.message,
    );
  }
  assertEquals(
    (await fetchFrom(hubOf(files), directory)).lines.at(-1),
    `${directory}: o/n at commit ${COMMIT}`,
  );
});

Deno.test("hf:// of --init_from is the directory of the download", () => {
  assertEquals(directoryOf("hf://o/n"), "models/o/n");
  assertEquals(directoryOf("hf://o/n.x@v1.0"), "models/o/n.x@v1.0");
  assertEquals(directoryOf("hf://o/n@refs/pr/3"), "models/o/n@refs_pr_3");
  for (const url of ["hf://o", "hf://datasets/o/n", "hf://o/..", "hf://o/n/model.safetensors", "hf://o/n@"]) {
    assertThrows(
      () => directoryOf(url),
      UserError,
      "should be like hf://OWNER/NAME or hf://OWNER/NAME@REVISION",
    );
  }
});
