// Where each rank of a job leaves word of itself: RUN/ranks/<rank>.json. When one does not come to a meeting of all, the others
// read there which it is, and on which machine.
import { hostname } from "../runtime/owner.ts";

/** A rank and what it waits for, as in its file. */
type Answer = {
  /** A name of the job: the files of an earlier one may still be there. */
  job: string;
  host: string;
  pid: number;
  /** The meeting that it has come to and waits at; "" while it works. */
  waits_at: string;
};

/** The files of all ranks of a job, as one of them sees them. */
export class RollCall {
  /** job: what no other job in this directory was called. */
  constructor(
    readonly directory: string,
    readonly job: string,
    readonly rank: number,
    readonly world_size: number,
  ) {}

  /** Says what this rank waits at; "" while it works. */
  answer(waits_at: string): void {
    const answer: Answer = { job: this.job, host: hostname(), pid: Deno.pid, waits_at };
    const path = this.#path(this.rank), temporary = `${path}.tmp`;
    Deno.mkdirSync(`${this.directory}/ranks`, { recursive: true });
    Deno.writeTextFileSync(temporary, JSON.stringify(answer) + "\n"); // not synced: it is for processes, not for the next start
    Deno.renameSync(temporary, path);
  }

  /** Whether a rank has answered in this job. */
  hasAnswered(rank: number): boolean {
    return this.#read(rank) !== undefined;
  }

  /** The ranks that wait nowhere: "rank 1 (process 4711 on node3), rank 2". The second has left no word. */
  late(): string {
    return Array.from({ length: this.world_size }, (_, rank) => ({ rank, answer: this.#read(rank) }))
      .filter(({ answer }) => answer === undefined || answer.waits_at === "")
      .map(({ rank, answer }) => `rank ${rank}${answer ? ` (process ${answer.pid} on ${answer.host})` : ""}`)
      .join(", ");
  }

  /** The machines of all ranks, as far as they have left word. */
  hosts(): string[] {
    const all = Array.from({ length: this.world_size }, (_, rank) => this.#read(rank)?.host ?? []).flat();
    return [...new Set(all)];
  }

  /** Removes the file of this rank, and the directory after the last one. */
  leave(): void {
    try {
      Deno.removeSync(this.#path(this.rank));
      Deno.removeSync(`${this.directory}/ranks`);
    } catch {
      // others are there, or have removed it first
    }
  }

  #path(rank: number): string {
    return `${this.directory}/ranks/${rank}.json`;
  }

  #read(rank: number): Answer | undefined {
    try {
      const answer = JSON.parse(Deno.readTextFileSync(this.#path(rank)));
      return answer.job === this.job ? answer : undefined;
    } catch (error) {
      if (error instanceof Deno.errors.NotCapable) throw error;
      return undefined; // not there
    }
  }
}
