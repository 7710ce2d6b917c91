import { assertEquals } from "@std/assert";
import { hostname } from "../runtime/owner.ts";
import { RollCall } from "./roll_call.ts";

const dir = Deno.makeTempDirSync();
Deno.test.afterAll(() => Deno.removeSync(dir, { recursive: true }));
const here = `(process ${Deno.pid} on ${hostname()})`;

Deno.test("late() names the ranks that wait nowhere, and those that have not answered in this job", () => {
  const ranks = [0, 1, 2, 3].map((rank) => new RollCall(`${dir}/run`, "this", rank, 4));
  for (const rank of [0, 1, 2, 3]) new RollCall(`${dir}/run`, "an earlier one", rank, 4).answer("barrier");
  assertEquals(ranks[0]!.late(), "rank 0, rank 1, rank 2, rank 3");
  ranks[0]!.answer("barrier");
  ranks[1]!.answer("");
  ranks[3]!.answer("barrier");
  assertEquals(ranks[0]!.late(), `rank 1 ${here}, rank 2`);
  assertEquals([1, 2].map((rank) => ranks[0]!.hasAnswered(rank)), [true, false]);
  ranks[1]!.answer("barrier");
  ranks[3]!.answer("");
  assertEquals(ranks[0]!.late(), `rank 2, rank 3 ${here}`);
});

Deno.test("leave() leaves nothing behind once all have left", () => {
  const ranks = [0, 1].map((rank) => new RollCall(`${dir}/other`, "this", rank, 2));
  for (const rank of ranks) rank.answer("");
  for (const rank of ranks) rank.leave();
  assertEquals([...Deno.readDirSync(`${dir}/other`)], []);
});
