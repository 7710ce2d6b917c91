// Ranks on several hosts, those of bench/hosts.ts, which only root can make; links are slowed and cut. The file system is one,
// as docs/distributed.md wants it.
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { Hosts } from "../bench/hosts.ts";
import {
  AS_ROOT,
  command,
  dataset,
  does,
  freshPath,
  isInstalled,
  list,
  metrics,
  mpirun,
  type Result,
  resultOf,
  Running,
  SMALL,
  standIn,
  taskArgs,
} from "./testing.ts";

const NAME = `loam${Deno.pid}`;
const canMakeHosts = does("ip", "netns", "add", NAME) && does("ip", "netns", "del", NAME);
const ignore = !canMakeHosts || !isInstalled("mpirun");
if (ignore) {
  console.log(
    "ignored for want of root, iproute2 (ip netns) or mpirun (Debian: iproute2, openmpi-bin): the tests of tests/hosts_test.ts",
  );
}

/** A job of one rank on each host, which all run `train` with these flags, as docs/distributed.md starts it. */
function start(hosts: Hosts, ...flags: string[]): Running {
  const keepalives = { time: 3, intvl: 1, probes: 5 }, [program, ...args] = hosts.mpirun;
  args.push(
    ...Object.entries(keepalives).flatMap(([key, n]) => ["--mca", `oob_tcp_keepalive_${key}`, String(n)]),
  );
  args.push(Deno.execPath(), ...taskArgs("train:dist", flags));
  return new Running(command(program!, args, AS_ROOT));
}

/** Runs a command on each host, of the i-th host with its own variables, to the end of both. */
function onEach(
  { names }: Hosts,
  words: string[],
  env: (i: number) => Record<string, string>,
): Promise<Result[]> {
  return Promise.all(names.map(async (name, i) => {
    return resultOf(await command("ip", ["netns", "exec", name, ...words], env(i)).output());
  }));
}

/** Lines that the ranks printed, without those of mpirun, which may warn about how it started another host's. */
function ownLines(stderr: string): string[] {
  return stderr.split("\n").filter((line) => line !== "" && !/^\[\S+\] plm:rsh: Warning/.test(line));
}

/** Waits until a run has a checkpoint. */
async function untilSaved(run: string): Promise<void> {
  for (let i = 0; !list(run).includes("latest"); i++) {
    assert(i < 1200, `${run} has no checkpoint after a minute`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

const data = ignore ? "" : await dataset({ words: 3000 });
const FLAGS = [
  `--data_dir=${data}`,
  ...SMALL,
  "--gradient_accumulation_steps=3",
  "--max_iters=15",
  "--save_interval=5",
];
const numbers = (run: string) => metrics(run).map(({ step, loss, grad_norm }) => [step, loss, grad_norm]);

/** Waits until no process is left on a host. */
async function untilEmpty(hosts: Hosts, i: number): Promise<void> {
  for (let turns = 0; hosts.processes(i).length > 0; turns++) {
    assert(turns < 300, `left on host ${i}: ${hosts.processes(i)}`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

Deno.test({
  name:
    "ranks on two hosts train as on one, over a slow link too, and a host that dies costs no bit of the result",
  ignore,
  async fn() {
    const one = freshPath(), two = freshPath(), died = freshPath();
    await mpirun(2, ...FLAGS, `--out_dir=${one}`);
    using hosts = new Hosts();
    hosts.slow(8, 16); // a thousandth of what it could be
    const { code, stderr } = await start(hosts, ...FLAGS, `--out_dir=${two}`).end();
    assertEquals([code, ownLines(stderr)], [0, []]);
    assertEquals(numbers(two), numbers(one));

    const job = start(
      hosts,
      ...FLAGS,
      `--out_dir=${died}`,
      "--resume=auto",
      "--max_iters=100000",
      "--min_lr=0.01",
    );
    await untilSaved(died);
    hosts.kill(1);
    const failed = await job.end();
    assert(failed.code !== 0 && failed.code !== 1, failed.stderr); // 1 would say that it is not worth another start
    await untilEmpty(hosts, 0); // mpirun may end a moment before those that it killed
    const saved = Number(list(`${died}/checkpoints`).at(-1)!.slice("step_".length));
    const more = [...FLAGS, "--min_lr=0.01", `--max_iters=${saved + 3}`]; // a rate that does not depend on max_iters
    const again = await start(hosts, ...more, `--out_dir=${died}`, "--resume=auto").end();
    assertEquals([again.code, ownLines(again.stderr)], [0, []]);
    const whole = freshPath();
    await mpirun(2, ...more, `--out_dir=${whole}`);
    assertEquals(numbers(died), numbers(whole));
  },
});

Deno.test({
  name:
    "a cable that is cut ends both ranks within seconds, by the keepalives that docs/distributed.md gives mpirun",
  ignore,
  async fn() {
    const out = freshPath();
    using hosts = new Hosts();
    const deadline = "--dist_timeout_s=10"; // the shortest: mpirun would hang where a rank ends itself before it notices
    const job = start(hosts, ...FLAGS, `--out_dir=${out}`, "--max_iters=1000000", deadline);
    await untilSaved(out);
    assert(does("ip", "-n", hosts.names[1]!, "link", "set", "cable", "down")); // pulls it out
    const { code, stderr } = await job.end();
    assert(code > 1, stderr); // 1 would say that it is not worth another start
    assertStringIncludes(stderr, "lost communication with a remote daemon");
    await untilEmpty(hosts, 1); // those that mpirun cannot reach any more end too
  },
});

Deno.test({
  name: "ranks that meet over a network, as NCCL's do, train on two hosts",
  ignore,
  async fn() {
    const LOAM_NCCL = await standIn("nccl");
    using hosts = new Hosts();
    const hasIPv6 = hosts.names.map((name, i) =>
      does("ip", "-n", name, "addr", "add", `fd77::${i + 1}/64`, "dev", "cable", "nodad")
    ).every(Boolean);
    if (!hasIPv6) console.log("no IPv6 here: not tested");
    for (const MASTER_ADDR of [hosts.addresses[0]!, ...hasIPv6 ? ["fd77::1", "[fd77::1]"] : []]) {
      const out = freshPath(),
        meeting = { MASTER_ADDR, MASTER_PORT: "29400", WORLD_SIZE: "2", LOCAL_RANK: "0" };
      const ranks = await onEach(
        hosts,
        [Deno.execPath(), ...taskArgs("train:dist", [...FLAGS, `--out_dir=${out}`])],
        (i) => ({ ...meeting, LOAM_NCCL, RANK: String(i) }),
      );
      assertEquals(ranks.map(({ code, stderr }) => [code, stderr]), [[0, ""], [0, ""]]);
      assertEquals(metrics(out).length, 15);
    }
  },
});

const python = Deno.env.get("LOAM_PYTHON");

Deno.test({
  name: "torchrun starts ranks on two hosts (LOAM_PYTHON)",
  ignore: ignore || python === undefined,
  async fn() {
    const out = freshPath(), LOAM_NCCL = await standIn("nccl");
    using hosts = new Hosts();
    const torchrun = [ // and what each of its ranks runs
      ...[python!, "-m", "torch.distributed.run", "--no-python", "--nnodes=2", "--nproc-per-node=1"],
      ...["--rdzv-backend=c10d", `--rdzv-endpoint=${hosts.addresses[0]}:29400`, "--rdzv-id=7"],
      ...[Deno.execPath(), ...taskArgs("train:dist", [...FLAGS, `--out_dir=${out}`])],
    ];
    const ranks = await onEach(hosts, torchrun, (i) => ({
      LOAM_NCCL,
      PET_LOCAL_ADDR: hosts.addresses[i]!, // these two: the hosts have one name
      PET_RDZV_CONF: `is_host=${i === 0}`,
    }));
    assertEquals(ranks.map(({ code }) => code), [0, 0], ranks.map(({ stderr }) => stderr).join("\n"));
    assertEquals(metrics(out).length, 15);
  },
});
