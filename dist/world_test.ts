import { assertEquals, assertRejects, assertThrows } from "@std/assert";
import { UserError } from "../base/errors.ts";
import settings from "../deno.json" with { type: "json" };
import { joinRanks } from "./ranks.ts";
import { findWorld, firstHost, WORLD_VARIABLES } from "./world.ts";

type Variables = Record<string, string>;

/** findWorld() of an environment; reading another variable than those listed would need another permission. */
function world(variables: Variables) {
  return findWorld((name) => {
    assertEquals(WORLD_VARIABLES.includes(name), true, `${name} is not in WORLD_VARIABLES`);
    return variables[name];
  });
}

function message(variables: Variables): string {
  return assertThrows(() => world(variables), UserError).message;
}

const torchrun = { RANK: "5", WORLD_SIZE: "8", LOCAL_RANK: "1", MASTER_ADDR: "node0", MASTER_PORT: "4711" };
const openMpi = {
  OMPI_COMM_WORLD_RANK: "1",
  OMPI_COMM_WORLD_SIZE: "2",
  OMPI_COMM_WORLD_LOCAL_RANK: "1",
};
const batch = { SLURM_PROCID: "0", SLURM_NTASKS: "4", SLURM_LOCALID: "0", SLURM_JOB_NODELIST: "gpu[03-04]" };
const srun = {
  ...batch,
  SLURM_PROCID: "3",
  SLURM_LOCALID: "1",
  SLURM_STEP_ID: "0",
  SLURM_STEP_NUM_TASKS: "4",
};

Deno.test("findWorld() is rank 0 of 1 where no launcher is at work", () => {
  const alone = {
    rank: 0,
    world_size: 1,
    local_rank: 0,
    launcher: "",
    job: "",
    master_addr: "127.0.0.1",
    master_ports: [29500, 29501, 29502, 29503, 29504, 29505, 29506, 29507],
    notice_s: 0,
  };
  assertEquals(world({}), alone as never);
  assertEquals(world(batch), { ...alone, master_addr: "gpu03" } as never); // the script of sbatch, not a task of srun
});

Deno.test("findWorld() reads torchrun, Open MPI, MPICH and Slurm", () => {
  const of = (variables: Variables) => {
    const { launcher, rank, world_size, local_rank, master_addr, master_ports } = world(variables);
    return [launcher, rank, world_size, local_rank, `${master_addr}:${master_ports[0]}`];
  };
  assertEquals(of(torchrun), ["torchrun", 5, 8, 1, "node0:4712"]); // torchrun has 4711
  assertEquals(of(openMpi), ["Open MPI", 1, 2, 1, "127.0.0.1:29500"]);
  assertEquals(of({ PMI_RANK: "1", PMI_SIZE: "3", MPI_LOCALRANKID: "1" }), [
    "MPICH",
    1,
    3,
    1,
    "127.0.0.1:29500",
  ]);
  assertEquals(of(srun).slice(0, 4), ["Slurm", 3, 4, 1]);
});

Deno.test("findWorld() takes two launchers that agree, and one that starts another", () => {
  assertEquals(world({ ...openMpi, ...srun, SLURM_PROCID: "1", SLURM_NTASKS: "2" }).launcher, "Open MPI");
  const starter = { ...srun, SLURM_STEP_NUM_NODES: "4" }; // one task on each node
  assertEquals(world({ ...torchrun, ...starter }).launcher, "torchrun");
  assertEquals(world({ ...openMpi, ...starter }).launcher, "Open MPI");
  const several = { ...srun, SLURM_STEP_NUM_NODES: "1" }; // srun -n 4 mpirun: four jobs by mistake
  assertEquals(
    message({ ...openMpi, ...several }),
    "Cannot tell which process this is: Open MPI says rank 1 of 2, Slurm says rank 3 of 4; start it with one launcher, or " +
      "unset the variables of the other",
  );
});

Deno.test("findWorld() finds rank 0 of Slurm where MASTER_ADDR and MASTER_PORT are not set", () => {
  const at = (variables: Variables) => {
    return world({ ...srun, SLURM_JOB_ID: "1234567", ...variables });
  };
  assertEquals(at({}).master_addr, "gpu03");
  assertEquals(at({ SLURM_JOB_NODELIST: "gpu03" }).master_addr, "127.0.0.1"); // what no task may connect to otherwise
  assertEquals(at({ SLURM_STEP_NODELIST: "gpu[04-05]" }).master_addr, "gpu04"); // the step has a part of the job's nodes
  const { master_addr, master_ports } = at({ MASTER_ADDR: "[fd00::1]", MASTER_PORT: "1" });
  assertEquals([master_addr, master_ports], ["fd00::1", [1]]);
});

Deno.test("findWorld() has ports of its own for each job and each of its steps", () => {
  const steps = ["0", "1", "2"].map((SLURM_STEP_ID) =>
    world({ ...srun, SLURM_JOB_ID: "1234567", SLURM_STEP_ID })
  );
  assertEquals(steps.map(({ job }) => job), ["1234567.0", "1234567.1", "1234567.2"]);
  const jobs = [
    ...steps,
    world({ ...openMpi, PMIX_NAMESPACE: "1893400577" }),
    world({ ...openMpi, PMIX_NAMESPACE: "prterun-a-12@1" }),
  ];
  const ports = jobs.flatMap(({ master_ports }) => master_ports);
  assertEquals([ports.length, new Set(ports).size], [40, 40]);
  assertEquals(ports.every((port) => port >= 20_000 && port < 30_000), true, `${ports}`);
  assertEquals(
    world({ ...torchrun, ...srun, SLURM_STEP_NUM_NODES: "4", TORCHELASTIC_RUN_ID: "c4" }).job,
    "c4",
  );
});

Deno.test("joinRanks() refuses a deadline in which the mpirun of several hosts does not notice a cut cable", async () => {
  const of = (hosts: number, ...keepalives: number[]) =>
    world({
      ...openMpi,
      OMPI_MCA_orte_num_nodes: `${hosts}`,
      ...Object.fromEntries(
        ["time", "intvl", "probes"].map((
          name,
          i,
        ) => [`OMPI_MCA_oob_tcp_keepalive_${name}`, `${keepalives[i]}`])
          .slice(0, keepalives.length),
      ),
    });
  assertEquals([of(1, 3, 1, 5), of(2), of(2, 3, 1, 5), of(2, 60), of(2, 0)].map(({ notice_s }) => notice_s), [
    0,
    480,
    8,
    240,
    Infinity,
  ]);
  const refused = (keepalives: number[], timeout_s: number) =>
    assertRejects(() => joinRanks(of(2, ...keepalives), timeout_s), UserError);
  const { message } = await refused([3, 1, 5], 9);
  assertEquals(
    message,
    "Cannot train on several hosts with --dist_timeout_s=9: mpirun notices after 8 s that a host has gone, and hangs where a " +
      "rank ends itself before; set it to 10 or more, or give mpirun --mca oob_tcp_keepalive_time 3 --mca " +
      "oob_tcp_keepalive_intvl 1 --mca oob_tcp_keepalive_probes 5",
  );
  await refused([], 599); // the default, 600, is not
  await refused([0], 100_000);
});

Deno.test("train may read the variables of all launchers", () => {
  const allowed = settings.permissions.train.env;
  assertEquals(WORLD_VARIABLES.filter((name) => !allowed.includes(name)), []);
});

Deno.test("findWorld() shows what two launchers say that do not agree", () => {
  assertEquals(
    message({ ...torchrun, ...openMpi }),
    "Cannot tell which process this is: torchrun says rank 5 of 8, Open MPI says rank 1 of 2; start it with one " +
      "launcher, or unset the variables of the other",
  );
});

Deno.test("findWorld() names a variable that is missing or out of range", () => {
  assertEquals(
    message({ RANK: "1" }),
    "Cannot use the variables of torchrun: WORLD_SIZE is not set, should be 1 to 1048576",
  );
  assertEquals(
    message({ ...torchrun, RANK: "8" }),
    "Cannot use the variables of torchrun: RANK is 8, should be 0 to 7",
  );
  assertEquals(
    message({ ...torchrun, MASTER_PORT: "http" }),
    "Cannot use the variables of torchrun: MASTER_PORT is http, should be 1 to 65534",
  );
});

Deno.test("firstHost() reads Slurm's list of nodes", () => {
  const cases = {
    "gpu[003-007,9],cpu1": "gpu003",
    "gpu[3,5-7]": "gpu3",
    "a-1,b-[2-3]": "a-1",
    "rack1-n[01-02]-ib": "rack1-n01-ib",
    "rack[2-3]n[04,06-07],cpu1": "rack2n04",
    "r[1,3]n[[02-03],7]x": "r1n02x",
    "r[1,2[3-4]5]n8": "r1n8",
    "": "",
    alone: "alone",
  };
  for (const [nodes, first] of Object.entries(cases)) assertEquals(firstHost(nodes), first);
});
