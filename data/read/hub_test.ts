import { assertEquals, assertThrows } from "@std/assert";
import { UserError } from "../../base/errors.ts";
import { environment } from "../../base/testing.ts";
import { credentials, hubEndpoint, hubFileUrl, hubListUrl, type HubPath, parseHubUrl } from "./hub.ts";
import { findSources } from "./inputs.ts";
import { assertRefused } from "./testing.ts";
import { type Answer, ranged, type Request, withServer } from "./testing_server.ts";

const file = new TextEncoder().encode("a text");

Deno.test("parseHubUrl() takes hf:// apart", () => {
  const urls: [string, HubPath][] = [
    ["hf://datasets/o/n.x/a.parquet", { dataset: "o/n.x", revision: "main", path: "a.parquet" }],
    ["hf://datasets/o/n/", { dataset: "o/n", revision: "main", path: "" }],
    ["hf://datasets/o/n@v1.0/dir/a.txt", { dataset: "o/n", revision: "v1.0", path: "dir/a.txt" }],
    [
      "hf://datasets/o/n@refs/convert/parquet/default/a.parquet",
      { dataset: "o/n", revision: "refs/convert/parquet", path: "default/a.parquet" },
    ],
  ];
  for (const [url, parts] of urls) assertEquals(parseHubUrl(url), parts);
  for (const url of ["hf://datasets/name.parquet", "hf://o/n/a.parquet", "hf://datasets/o/n"]) {
    const { message } = assertThrows(() => parseHubUrl(url), UserError);
    assertEquals(
      message,
      `Cannot read "${url}": it should be like hf://datasets/OWNER/NAME/PATH or hf://datasets/OWNER/NAME@REVISION/PATH`,
    );
  }
});

Deno.test("credentials() are for the hub alone", () => {
  using _ = environment({ HF_TOKEN: "hf_secret", HF_ENDPOINT: "https://hub.example:8443" });
  const shown = { authorization: "Bearer hf_secret" };
  assertEquals(credentials("https://hub.example:8443/datasets/o/n"), shown);
  const others = ["https://hub.example/a", "http://hub.example:8443/a", "https://hub.example.org:8443/a"];
  for (const url of [...others, "https://huggingface.co/a"]) assertEquals(credentials(url), {}, url);
});

Deno.test("hubFileUrl() and hubListUrl() give addresses on the hub", () => {
  const main = { dataset: "o/n", revision: "main", path: "dir/a 1.txt" };
  const converted = { dataset: "o/n", revision: "refs/convert/parquet", path: "" };
  {
    using _ = environment({ HF_ENDPOINT: "" });
    assertEquals(hubFileUrl(main), "https://huggingface.co/datasets/o/n/resolve/main/dir/a%201.txt");
    const marks = hubFileUrl({ ...main, path: "dir/a?b#c=1.txt" });
    assertEquals(marks, "https://huggingface.co/datasets/o/n/resolve/main/dir/a%3Fb%23c=1.txt");
    assertEquals(
      hubListUrl(converted),
      "https://huggingface.co/api/datasets/o/n/tree/refs%2Fconvert%2Fparquet?recursive=true",
    );
  }
  using _ = environment({ HF_ENDPOINT: "https://mirror.example/" });
  assertEquals(
    hubListUrl(main),
    "https://mirror.example/api/datasets/o/n/tree/main/dir%2Fa%201.txt?recursive=true",
  );
});

Deno.test("hubEndpoint() refuses an HF_ENDPOINT that is no address of http", () => {
  for (const endpoint of ["file:///etc", "huggingface.co", "http://["]) {
    using _ = environment({ HF_ENDPOINT: endpoint });
    const { message } = assertThrows(hubEndpoint, UserError);
    assertEquals(
      message,
      `Cannot find the hub: HF_ENDPOINT is "${endpoint}", should be an address such as https://huggingface.co`,
    );
  }
});

/** Lists dir/b.txt and dir/README.md, then dir/sub, dir/a.txt and dir/sub/c.txt; every file is a text. */
function hub(request: Request): Answer {
  const { path, headers } = request;
  if (!path.startsWith("/api/")) return ranged(file, request);
  const list = path.includes("cursor")
    ? [["directory", "dir/sub"], ["file", "dir/a.txt"], ["file", "dir/sub/c.txt"]]
    : [["file", "dir/b.txt"], ["file", "dir/README.md"]];
  const next = `<http://${headers.get("host")}${path}&cursor=x>; rel="next"`;
  return {
    body: new TextEncoder().encode(JSON.stringify(list.map(([type, path]) => ({ type, path, size: 6 })))),
    headers: path.includes("cursor") ? {} : { link: next },
  };
}

Deno.test("findSources() expands patterns and directories on the hub", () =>
  withServer(hub, async (server) => {
    using _ = environment({ HF_ENDPOINT: server.url, HF_TOKEN: "" });
    const names = async (pattern: string) => {
      const [source] = await findSources([`hf://datasets/o/n@v1/${pattern}`], { column: "text" });
      return source!.inputs.map(({ name }) => name.replace(`${server.url}/datasets/o/n/resolve/v1/dir/`, ""));
    };
    assertEquals(await names("dir/*.txt"), ["a.txt", "b.txt"]);
    assertEquals(await names("dir/**/*.txt"), ["a.txt", "b.txt", "sub/c.txt"]);
    assertEquals(await names("dir/"), ["a.txt", "b.txt", "sub/c.txt"]);
    assertEquals(await names("dir/other.txt"), ["other.txt"]); // as it stands
    const lists = server.requests.map(({ path }) => path).filter((path) => path.startsWith("/api/"));
    const list = "/api/datasets/o/n/tree/v1/dir?recursive=true";
    assertEquals(lists, [1, 2, 3].flatMap(() => [list, `${list}&cursor=x`]));
    await assertRefused(
      () => names("dir/*.jsonl"),
      'Cannot find input: no file matches "hf://datasets/o/n@v1/dir/*.jsonl"',
    );
  }));
