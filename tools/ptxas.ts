// Reads what ptxas says about each kernel when kernels.cu is compiled with -Xptxas -v.

/** Resources of one kernel on one architecture. */
export type KernelUse = { kernel: string; arch: string; registers: number; spill_bytes: number };

/** Every kernel in the report, sorted by name and architecture. spill_bytes: stored or loaded, whichever is more. */
export function parsePtxas(report: string): KernelUse[] {
  const found: KernelUse[] = [];
  for (const part of report.split("Compiling entry function '").slice(1)) {
    const [, symbol, arch] = /^(\w+)' for 'sm_(\w+)'/.exec(part) ?? [];
    const [, stores, loads] = /(\d+) bytes spill stores, (\d+) bytes spill loads/.exec(part) ?? [];
    const registers = /Used (\d+) registers/.exec(part)?.[1];
    if (!symbol || !arch || !loads || !registers) throw new Error(`internal: cannot read ptxas: ${part}`);
    found.push({
      kernel: kernelName(symbol),
      arch,
      registers: Number(registers),
      spill_bytes: Math.max(Number(stores), Number(loads)),
    });
  }
  const order = (u: KernelUse) => `${u.kernel} ${u.arch.padStart(4)}`;
  return found.sort((a, b) => order(a) < order(b) ? -1 : 1);
}

/**
 * "attention_dq_kernel<128>" of "_Z19attention_dq_kernelILi128EEvP13__nv_bfloat16...", "hopper::dq_kernel<64>" of its own; of
 * attention's that keep documents apart "attention_forward_kernel<64, documents>".
 */
export function kernelName(symbol: string): string {
  if (symbol.startsWith("_ZN6hopper")) return `hopper::${kernelName(symbol.replace("N6hopper", ""))}`;
  const [, length, rest] = /^_Z(?:L|N\w*?)?(\d+)(\w+)$/.exec(symbol) ?? [];
  if (!length || !rest) return symbol;
  const name = rest.slice(0, Number(length)),
    parameter = /^I(?:Li(\d+)E(?:Lb([01])E)?|(13__nv_bfloat16|f))/.exec(
      rest.slice(Number(length)),
    );
  if (!parameter) return name;
  const [, size, documents, type] = parameter;
  return `${name}<${size ?? (type === "f" ? "float" : "act")}${documents === "1" ? ", documents" : ""}>`;
}

/** Registers of each kernel, a column for each architecture; spilled bytes, where there are any, after a plus. */
export function ptxasTable(uses: KernelUse[]): string {
  const archs = [...new Set(uses.map(({ arch }) => arch))].sort((a, b) => parseInt(a) - parseInt(b));
  const kernels = [...new Set(uses.map(({ kernel }) => kernel))];
  const rows = kernels.map((kernel) => [
    kernel,
    ...archs.map((arch) => {
      const use = uses.find((u) => u.kernel === kernel && u.arch === arch);
      return use ? `${use.registers}${use.spill_bytes ? `+${use.spill_bytes}B` : ""}` : "";
    }),
  ]);
  const lines = [["registers (+ spilled bytes)", ...archs.map((arch) => `sm_${arch}`)], ...rows];
  const width = Math.max(...lines.map(([first]) => first!.length));
  return lines.map(([first, ...rest]) => first!.padEnd(width) + rest.map((cell) => cell.padStart(9)).join(""))
    .join("\n");
}
