import { assertEquals, assertThrows } from "@std/assert";
import { UserError } from "../base/errors.ts";
import settings from "../deno.json" with { type: "json" };
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
    master_addr: "127.0.0.1",
    master_port: 29500,
  };
  assertEquals(world({}), alone as never);
  assertEquals(world(batch), { ...alone, master_addr: "gpu03" } as never); // the script of sbatch, not a task of srun
});

Deno.test("findWorld() reads torchrun, Open MPI, MPICH and Slurm", () => {
  const of = (variables: Variables) => {
    const { launcher, rank, world_size, local_rank, master_addr, master_port } = world(variables);
    return [launcher, rank, world_size, local_rank, `${master_addr}:${master_port}`];
  };
  assertEquals(of(torchrun), ["torchrun", 5, 8, 1, "node0:4711"]);
  assertEquals(of(openMpi), ["Open MPI", 1, 2, 1, "127.0.0.1:29500"]);
  assertEquals(of({ PMI_RANK: "1", PMI_SIZE: "3", MPI_LOCALRANKID: "1" }), [
    "MPICH",
    1,
    3,
    1,
    "127.0.0.1:29500",
  ]);
  assertEquals(of(srun), ["Slurm", 3, 4, 1, "gpu03:29500"]);
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
    const { master_addr, master_port } = world({ ...srun, ...variables });
    return `${master_addr}:${master_port}`;
  };
  assertEquals(at({ SLURM_JOB_ID: "1234567" }), "gpu03:24567");
  assertEquals(at({ SLURM_JOB_NODELIST: "gpu03" }), "127.0.0.1:29500"); // what no task may connect to otherwise
  assertEquals(at({ SLURM_JOB_ID: "1234567", MASTER_ADDR: "a", MASTER_PORT: "1" }), "a:1");
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
    "Cannot use the variables of torchrun: MASTER_PORT is http, should be 1 to 65535",
  );
});

Deno.test("firstHost() reads Slurm's list of nodes", () => {
  const cases = {
    "gpu[003-007,9],cpu1": "gpu003",
    "gpu[3,5-7]": "gpu3",
    "a-1,b-[2-3]": "a-1",
    "rack1-n[01-02]-ib": "rack1-n01-ib",
    alone: "alone",
  };
  for (const [nodes, first] of Object.entries(cases)) assertEquals(firstHost(nodes), first);
});
