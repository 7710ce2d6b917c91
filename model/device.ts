// Opens the device that a command line names.
import { KernelError, UserError } from "../base/errors.ts";
import {
  chooseDevice,
  type DeviceInfo,
  type DeviceName,
  open,
  openCpuBeside,
  type OpenOptions,
  s,
  type Symbols,
} from "../ffi/library.ts";
import { wrongKernels } from "../runtime/self_check.ts";

/** Throws UserError unless name is a device, or empty for the one that answers. */
export function requireDevice(name: string): void {
  if (["", "cpu", "cuda", "emu"].includes(name)) return; // emu: the CUDA kernels on a CPU, for tests
  throw new UserError(`Cannot use device "${name}": it must be cpu or cuda`);
}

/** Opens the named device, or else the one that answers, and says why it is that one. Throws UserError if it does not open. */
export function openDevice(named: string, options: OpenOptions = {}): DeviceInfo & { reason: string } {
  requireDevice(named);
  const { name, reason } = named
    ? { name: named as DeviceName, reason: "as asked" }
    : chooseDevice(options.index);
  try {
    return { ...open(name, name === "cpu" ? { ...options, index: 0 } : options), reason };
  } catch (error) {
    if (!(error instanceof KernelError)) throw error;
    throw new UserError(`Cannot open device ${name}: ${error.message}`);
  }
}

/** Compares the kernels of a GPU with those of the CPU library and says so. Throws UserError that names the wrong ones. */
export function requireRightKernels(name: string, gpu: Symbols): string {
  const cpu = openCpuBeside(), t0 = performance.now();
  if (!cpu) return "kernels unchecked, as the CPU library is not built";
  const wrong = wrongKernels(gpu, cpu);
  if (wrong.length > 0) {
    throw new UserError(
      `Cannot train on ${name}: ${
        wrong.join(", ")
      }; use --device=cpu, or --self_check=false to train all the same`,
    );
  }
  return `kernels agree with the CPU's, checked in ${((performance.now() - t0) / 1000).toFixed(1)} s`;
}

/** OpenOptions as the variables of train.ts have them: bf16_gemm is auto, true or false. */
export type DeviceSettings = Omit<OpenOptions, "bf16_gemm"> & { bf16_gemm?: string; self_check?: boolean };

/**
 * Opens a device like openDevice() and describes it: "cpu (as asked): Intel Xeon, 2 threads, avx512, GEMM: onednn 2.6". With
 * self_check the kernels of a GPU are compared with the CPU's first.
 */
export function openAndDescribe(named: string, settings: DeviceSettings): string {
  const bf16_gemm = settings.bf16_gemm === "auto" ? "auto" : settings.bf16_gemm === "true";
  const opened = openDevice(named, { ...settings, bf16_gemm });
  const { library, reason, name, threads, isa, blas, attention } = opened;
  const inputs = opened.bf16_gemm ? " of bfloat16 (--bf16_gemm=false: of float32)" : "";
  const how = library === "cpu"
    ? `${threads} threads, ${isa}, GEMM${inputs}: ${blas}`
    : `attention: ${attention}`;
  const check = settings.self_check && library === "cuda" ? `, ${requireRightKernels(name, s)}` : "";
  return `${library} (${reason}): ${name}, ${how}${check}`;
}
