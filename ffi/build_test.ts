// Builds a small kernels.cpp with a copy of ffi/ in a folder whose name has a space.
import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";

const ROOT = `${import.meta.dirname}/..`;
const SOURCE = 'extern "C" int answer() { return 42; }\n';

type Project =
  & { root: string; build: (args?: string[], env?: Record<string, string>) => Promise<Ran> }
  & Disposable;
type Ran = { code: number; stdout: string; stderr: string };

/** What `deno task build` needs, with the given kernels.cpp. */
function project(source: string): Project {
  const root = Deno.makeTempDirSync({ prefix: "loam build " });
  for (const folder of ["ffi", "offline", "offline/assert", "offline/cli"]) {
    Deno.mkdirSync(`${root}/${folder}`);
    for (const { name, isFile } of Deno.readDirSync(`${ROOT}/${folder}`)) {
      if (isFile) Deno.copyFileSync(`${ROOT}/${folder}/${name}`, `${root}/${folder}/${name}`);
    }
  }
  for (const name of ["deno.json", "kernels.h"]) Deno.copyFileSync(`${ROOT}/${name}`, `${root}/${name}`);
  Deno.writeTextFileSync(`${root}/kernels.cpp`, source);
  return {
    root,
    build: async (args = [], env = {}) => {
      const command = ["run", "-q", "--cached-only", "--no-lock", "-P=build", "ffi/build.ts", ...args];
      const options = { args: command, cwd: root, env: { NO_COLOR: "1", ...env } };
      const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), options).output();
      return { code, stdout: new TextDecoder().decode(stdout), stderr: new TextDecoder().decode(stderr) };
    },
    [Symbol.dispose]: () => Deno.removeSync(root, { recursive: true }),
  };
}

/** Names in build/. */
function built({ root }: Project): string[] {
  return [...Deno.readDirSync(`${root}/build`)].map(({ name }) => name).sort();
}

Deno.test("build compiles every variant, and again only what is out of date", async () => {
  using p = project(SOURCE);
  const first = await p.build();
  assertEquals([first.code, first.stderr], [0, ""]);
  assertMatch(first.stdout, /^compiling cpu.* with .+\nbuilt libloam_cpu.* in \d+\.\d s\n$/);
  const libraries = built(p);
  assert(libraries.some((name) => /^libloam_cpu\.(so|dylib)$/.test(name)), libraries.join());
  assertEquals((await p.build()).stdout, "build/: the CPU libraries are up to date\n");
  assertMatch((await p.build(["--force"])).stdout, /^compiling cpu/);
  const future = new Date(Date.now() + 60_000);
  Deno.utimeSync(`${p.root}/kernels.h`, future, future);
  assertMatch((await p.build()).stdout, /^compiling cpu/);
  assertEquals(built(p), libraries); // nothing temporary is left
});

Deno.test("build shows the compiler's words and keeps the library that was there", async () => {
  using p = project(SOURCE);
  await p.build();
  const libraries = built(p);
  Deno.writeTextFileSync(`${p.root}/kernels.cpp`, "int broken(\n");
  const { code, stderr } = await p.build(["--force"]);
  assertEquals(code, 1);
  assertStringIncludes(stderr, `error: Cannot compile ${p.root}/kernels.cpp with `);
  assertMatch(stderr, /kernels\.cpp:\d+:\d+: error: /);
  assertEquals(built(p), libraries);
});

Deno.test("build refuses compilers and arguments that it does not know", async () => {
  using p = project(SOURCE);
  assertEquals(await p.build([], { CXX: "no-such-compiler" }), {
    code: 1,
    stdout: "",
    stderr: "error: Cannot run the compiler CXX=no-such-compiler: set CXX to a C++17 compiler or unset it\n",
  });
  assertEquals(
    (await p.build(["--arch=120"])).stderr,
    "error: Cannot build: unknown argument --arch=120; the only flag is --force\n",
  );
});
