// Two hosts on one machine: network namespaces with an address each, which only root can make. mpirun starts the rank of the
// second host through a script in the place of ssh.
import { UserError } from "../base/errors.ts";
import { findCompiler } from "../tools/build.ts";

const SLOW_START = "/proc/sys/net/ipv4/tcp_slow_start_after_idle";
let count = 0;

/** Two hosts that a cable connects. The constructor throws UserError where it cannot make them, as without root. */
export class Hosts implements Disposable {
  /** Of their network namespaces. */
  readonly names: string[] = [0, 1].map((i) => `loam${Deno.pid}_${count}${i}`);
  readonly addresses: string[] = ["10.77.0.1", "10.77.0.2"];
  /** Starts a rank on each: what they run stands behind it. */
  readonly mpirun: string[];
  readonly #agent = Deno.makeTempFileSync(); // takes the place of ssh
  readonly #wire: Deno.ChildProcess | undefined; // that delays what goes through the cable

  /** Needs ip, and slow() tc (Debian: iproute2). wire: of makeWire(), with which what is sent arrives so many ms later. */
  constructor(wire = "", delay_ms = 0) {
    count++;
    const [a, b] = this.names as [string, string];
    for (const name of this.names) call("ip", "netns", "add", name);
    if (wire) {
      this.#wire = new Deno.Command(wire, { args: [a, b, `${delay_ms}`], stdout: "null" }).spawn();
      const hasCable = (name: string) => /\bcable\b/.test(call("ip", "-n", name, "link", "show"));
      for (let i = 0; !this.names.every(hasCable); i++) {
        if (i === 100) throw new UserError("Cannot make two hosts: there is no cable; it wants /dev/net/tun");
      }
    } else {
      const veth = ["type", "veth", "peer", "name", "cable", "netns", b];
      call("ip", "link", "add", "cable", "netns", a, ...veth);
    }
    this.names.forEach((name, i) => {
      call("ip", "-n", name, "addr", "add", `${this.addresses[i]}/24`, "dev", "cable");
      if (wire) call("ip", "netns", "exec", name, "sh", "-c", `echo 0 > ${SLOW_START}`); // as long links want it
      for (const link of ["cable", "lo"]) call("ip", "-n", name, "link", "set", link, "up");
    });
    const cases = this.names.map((name, i) => `${this.addresses[i]}) host=${name};;`).join(" ");
    const script = `#!/bin/sh\ncase $1 in ${cases} esac\nshift\nexec ip netns exec $host sh -c "$*"\n`;
    Deno.writeTextFileSync(this.#agent, script);
    Deno.chmodSync(this.#agent, 0o755);
    this.mpirun = [
      ...["ip", "netns", "exec", a, "mpirun", "-n", "2", "--host", this.addresses.join(",")],
      ...["--bind-to", "none", "--mca", "plm_rsh_agent", this.#agent, "--mca", "btl", "self,tcp"],
    ];
  }

  /** Lets so many Mbit/s leave each host, behind bursts of so many kB at full speed. */
  slow(mbit: number, burst_kb: number): void {
    const filter = ["tbf", "rate", `${mbit}mbit`, "burst", `${burst_kb}kb`, "limit", `${64 * burst_kb}kb`];
    for (const name of this.names) call("tc", "-n", name, "qdisc", "add", "dev", "cable", "root", ...filter);
  }

  /** Processes of a host. */
  processes(host: number): number[] {
    return call("ip", "netns", "pids", this.names[host]!).split("\n").filter(Boolean).map(Number);
  }

  /** Ends all processes of a host, as when its power fails. */
  kill(host: number): void {
    for (const pid of this.processes(host)) {
      try {
        Deno.kill(pid, "SIGKILL");
      } catch (error) {
        if (!(error instanceof Deno.errors.NotFound)) throw error; // it ended meanwhile
      }
    }
  }

  [Symbol.dispose](): void {
    for (const host of [0, 1]) this.kill(host);
    this.#wire?.kill();
    for (const name of this.names) call("ip", "netns", "del", name);
    Deno.removeSync(this.#agent);
  }
}

/** Compiles what a cable with a delay needs, where the kernel has no netem for tc; returns its path. */
export async function makeWire(): Promise<string> {
  const out = Deno.makeTempFileSync(), { command } = await findCompiler();
  call(command, "-O2", "-std=c++17", `${import.meta.dirname}/wire.cpp`, "-o", out);
  return out;
}

/** Runs a program to its end; returns what it prints. */
function call(program: string, ...args: string[]): string {
  const { success, stdout, stderr } = new Deno.Command(program, { args }).outputSync(),
    text = new TextDecoder();
  if (!success) throw new UserError(`Cannot make two hosts: ${text.decode(stderr).trim()}`);
  return text.decode(stdout);
}
