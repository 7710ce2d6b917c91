import { assertEquals, assertThrows } from "@std/assert";
import { UserError } from "../base/errors.ts";
import { environment } from "../base/testing.ts";
import { claimRun, hostname, jobName, ownerOf, releaseRun } from "./owner.ts";

const dir = Deno.makeTempDirSync();
Deno.test.afterAll(() => Deno.removeSync(dir, { recursive: true }));
const file = `${dir}/owner.json`, metrics = `${dir}/metrics.jsonl`;

Deno.test("claimRun() names this process until releaseRun()", () => {
  assertEquals(ownerOf(dir), "another process");
  claimRun(dir);
  assertEquals(ownerOf(dir), `process ${Deno.pid} on ${hostname()}`);
  releaseRun(dir);
  releaseRun(dir);
  assertEquals(ownerOf(dir), "another process");
});

Deno.test("claimRun() replaces what a crash left on this machine, and what is not whole", () => {
  for (const left of [JSON.stringify({ host: hostname(), pid: 1 }), '{"host": "el']) {
    Deno.writeTextFileSync(file, left);
    Deno.writeTextFileSync(metrics, "");
    claimRun(dir);
    assertEquals(ownerOf(dir), `process ${Deno.pid} on ${hostname()}`);
  }
});

Deno.test("ownerOf() says nothing of a file with values of other types", () => {
  for (
    const owner of ["{}", "[]", "3", '{"host":1,"pid":7}', '{"host":"a","pid":"7"}', '{"host":"a","pid":-7}']
  ) {
    Deno.writeTextFileSync(file, owner);
    assertEquals(ownerOf(dir), "another process", owner);
  }
});

Deno.test("claimRun() goes on after a crash of the same job on another machine", () => {
  using _ = environment({ SLURM_JOB_ID: "12" });
  for (const [job, takes] of [["Slurm 12", true], ["Slurm 13", false]] as const) {
    Deno.writeTextFileSync(file, JSON.stringify({ host: "elsewhere", pid: 7, job }));
    Deno.writeTextFileSync(metrics, "");
    if (takes) claimRun(dir);
    else assertThrows(() => claimRun(dir), UserError);
    assertEquals(ownerOf(dir), takes ? `process ${Deno.pid} on ${hostname()}` : "process 7 on elsewhere");
  }
});

Deno.test("claimRun() refuses a run that another machine has written to lately, and takes one that it has left", () => {
  Deno.writeTextFileSync(file, JSON.stringify({ host: "elsewhere", pid: 7 }));
  Deno.writeTextFileSync(metrics, "");
  assertEquals(
    assertThrows(() => claimRun(dir), UserError).message,
    `Cannot train in ${dir}: process 7 on elsewhere wrote there in the last ten minutes and has not ended in good order; ` +
      `if it is gone, remove ${file}, or choose another --out_dir`,
  );
  const long_ago = Date.now() / 1000 - 700;
  Deno.utimeSync(metrics, long_ago, long_ago);
  claimRun(dir);
  assertEquals(ownerOf(dir), `process ${Deno.pid} on ${hostname()}`);
});

Deno.test("jobName() is what a job keeps when it is started once more", () => {
  const of = (variables: Record<string, string>) => jobName((name) => variables[name]);
  assertEquals(of({}), "");
  assertEquals(of({ TORCHELASTIC_RUN_ID: "none" }), "");
  assertEquals(of({ TORCHELASTIC_RUN_ID: "c4" }), "torchrun c4");
  assertEquals(of({ TORCHELASTIC_RUN_ID: "c4", SLURM_JOB_ID: "7" }), "Slurm 7");
});
