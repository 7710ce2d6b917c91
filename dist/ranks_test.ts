// Ranks in one process; tests/dist_test.ts has them in processes of their own, as mpirun starts them.
import { assertEquals, assertMatch, assertRejects } from "@std/assert";
import { UserError } from "../base/errors.ts";
import { type Engine, Ranks } from "./ranks.ts";
import { open } from "../ffi/library.ts";
import { hostname } from "../runtime/owner.ts";
import { findWorld } from "./world.ts";

open("cpu", { threads: 1, blas: "builtin" }); // whose end_after() holds calls to their deadlines

const scratch = Deno.makeTempDirSync();
Deno.test.afterAll(() => Deno.removeSync(scratch, { recursive: true }));

/** n ranks whose engines meet in this process; afterBarrier is called by each rank. */
function ranksOf(n: number, timeout_s: number, afterBarrier = (_rank: number) => {}): Ranks[] {
  const sent: Uint8Array[] = []; // by rank 0, in order
  let arrivals = 0;
  const until = async (isSo: () => boolean) => {
    while (!isSo()) await new Promise((resolve) => setTimeout(resolve, 1));
  };
  return Array.from({ length: n }, (_, rank) => {
    let received = 0, barriers = 0;
    const nothing = () => Promise.resolve();
    const engine: Engine = {
      beginReduce() {},
      progress() {},
      reduced: nothing,
      beginGather: nothing,
      hasGathered: () => true,
      allGather: nothing,
      allReduce: nothing,
      async broadcast(bytes) {
        if (rank === 0) sent.push(bytes.slice());
        await until(() => sent.length > received);
        bytes.set(sent[received++]!);
      },
      async barrier() {
        arrivals++;
        const all = n * ++barriers;
        await until(() => arrivals >= all);
        afterBarrier(rank);
      },
      abort() {},
      finalize() {},
    };
    const variables: Record<string, string> = { RANK: `${rank}`, WORLD_SIZE: `${n}` };
    return new Ranks(findWorld((name) => variables[name]), engine, timeout_s);
  });
}

Deno.test("share() deals each thing to one rank, whatever their numbers, and no rank has two more than another", () => {
  for (let n = 0; n < 20; n++) {
    for (let world_size = 1; world_size < 24; world_size++) {
      const shares = ranksOf(world_size, 0).map((rank) => rank.share(n));
      assertEquals(shares.flat().sort((a, b) => a - b), Array.from({ length: n }, (_, i) => i));
      const sizes = shares.map(({ length }) => length);
      assertEquals(Math.max(...sizes) - Math.min(...sizes) <= 1, true, `${n} among ${world_size}`);
    }
  }
});

Deno.test("enter() brings all ranks to the directory of rank 0, and finalize() leaves nothing of them there", async () => {
  const ranks = ranksOf(3, 60);
  const where = await Promise.all(ranks.map((rank, i) => rank.enter(`${scratch}/run${i}`)));
  assertEquals(where, Array(3).fill(`${scratch}/run0`));
  const files = Array.from(Deno.readDirSync(`${scratch}/run0/ranks`), ({ name }) => name);
  assertEquals(files.sort(), ["0.json", "1.json", "2.json"]);
  await Promise.all(ranks.map((rank) => rank.finalize()));
  assertEquals(Array.from(Deno.readDirSync(`${scratch}/run0`)), []);
});

Deno.test("enter() refuses a directory that is not the one of rank 0", async () => {
  const out = `${scratch}/local`; // on another machine it holds the file of that machine's rank only
  const [first, second] = ranksOf(2, 0.1, (rank) => rank === 0 || Deno.removeSync(`${out}/ranks/0.json`));
  const [, refused] = await Promise.all([
    assertRejects(() => first!.enter(out), UserError),
    assertRejects(() => second!.enter(out), UserError),
  ]);
  assertEquals(
    refused.message,
    `Cannot train in ${out}: on ${hostname()} it is not the directory that rank 0 writes to; choose an --out_dir on a file ` +
      "system that all ranks share",
  );
});

Deno.test("enter() says what keeps it from writing", async () => {
  Deno.writeTextFileSync(`${scratch}/file`, "");
  const [rank] = ranksOf(1, 60);
  const { message } = await assertRejects(() => rank!.enter(`${scratch}/file`), UserError);
  assertMatch(message, /^Cannot write to \S+file: File exists .*; choose another --out_dir$/);
});

Deno.test("requireSame() names each value that differs, of objects too", async () => {
  const [first, second] = ranksOf(2, 60);
  let goesOn = false;
  const refused = assertRejects(
    () => second!.requireSame({ config: { seed: 7, n_layer: 2 }, weights: "b" }),
    UserError,
  );
  const passed = first!.requireSame({ config: { seed: 1, n_layer: 2, n_head: 4 }, weights: "a" })
    .then(() => goesOn = true);
  assertEquals(
    (await refused).message,
    "Cannot train with rank 0: config.seed is 7 here and 1 on rank 0, config.n_head is undefined here and 4 on rank 0, " +
      "weights is b here and a on rank 0; start all ranks with the same code, data and flags",
  );
  await new Promise((resolve) => setTimeout(resolve, 20));
  assertEquals(goesOn, false); // it waits for the other, which would end the job
  await second!.barrier();
  await passed;
});

/**
 * What a rank of three prints that waits at a barrier for ever, and its exit code. failure: what its engine says of queued work.
 * hosts: of all ranks, which wait there too, in its run directory.
 */
async function waiting(
  timeout_s: number,
  failure: string | undefined,
  hosts: string[] = [],
): Promise<[number, string]> {
  const program = `
    import { open } from "${new URL("../ffi/library.ts", import.meta.url)}";
    import { Ranks } from "${new URL("ranks.ts", import.meta.url)}";
    open("cpu", { threads: 1, blas: "builtin" });
    const nothing = () => Promise.resolve(), ever = () => new Promise(() => {});
    const engine = { reduced: nothing, allGather: nothing, allReduce: nothing, broadcast: nothing, barrier: ever };
    const more = { failure: () => ${
    JSON.stringify(failure)
  }, abort: () => console.error("aborted"), finalize: () => {} };
    let isBarred = false;
    engine.barrier = () => isBarred ? ever() : nothing();
    const ranks = new Ranks({ rank: ${
    hosts.length > 0 ? 0 : 2
  }, world_size: 3 }, { ...engine, ...more }, ${timeout_s});
    const hosts = ${JSON.stringify(hosts)}, out = "${scratch}/${hosts.join("_")}";
    if (hosts.length > 0) {
      await ranks.enter(out);
      const { job } = JSON.parse(Deno.readTextFileSync(out + "/ranks/0.json"));
      const answer = (host) => JSON.stringify({ job, host, pid: 1, waits_at: "barrier" });
      hosts.forEach((host, rank) => rank > 0 && Deno.writeTextFileSync(out + "/ranks/" + rank + ".json", answer(host)));
      ranks.beat(7);
    }
    isBarred = true;
    await ranks.barrier();
  `;
  const args = ["eval", program];
  const { code, stderr } = await new Deno.Command(Deno.execPath(), { args, stderr: "piped" }).output();
  return [code, new TextDecoder().decode(stderr)];
}

Deno.test("meet() ends all ranks when queued work fails, and when others do not come in time", async () => {
  const here = hostname();
  const ends = [waiting(60, "remote process exited"), waiting(0.1, undefined)];
  ends.push(waiting(0.1, undefined, [here, "node1", "node1"]), waiting(0.1, undefined, [here, here, here]));
  const stuck =
    "error: rank 0: all ranks came to the barrier of step 7, but it did not end within 0.1 s (--dist_timeout_s)";
  assertEquals(await Promise.all(ends), [
    [75, "error: rank 2: the barrier at the start: remote process exited\naborted\n"],
    [
      75,
      "error: rank 2: not all ranks came to the barrier at the start within 0.1 s (--dist_timeout_s); start again with " +
      "--resume=auto\naborted\n",
    ],
    [
      75,
      `${stuck}: the network between ${here}, node1 is cut or stands still; start again with --resume=auto\naborted\n`,
    ],
    [75, `${stuck}: one of them hangs on ${here}; start again with --resume=auto\naborted\n`],
  ]);
});
