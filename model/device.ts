// Opens the device that a command line names.
import { KernelError, UserError } from "../base/errors.ts";
import { chooseDevice, type DeviceInfo, type DeviceName, open, type OpenOptions } from "../ffi/library.ts";

/** Throws UserError unless name is a device, or empty for the one that answers. */
export function requireDevice(name: string): void {
  if (["", "cpu", "cuda", "emu"].includes(name)) return; // emu: the CUDA kernels on a CPU, for tests
  throw new UserError(`Cannot use device "${name}": it must be cpu or cuda`);
}

/** Opens the named device, or else the one that answers, and says why it is that one. Throws UserError if it does not open. */
export function openDevice(named: string, options: OpenOptions = {}): DeviceInfo & { reason: string } {
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

/** Opens a device like openDevice() and describes it: "cpu (as asked): Intel Xeon, 2 threads, avx512, GEMM: onednn 2.6". */
export function openAndDescribe(named: string, options: OpenOptions): string {
  const { library, reason, name, threads, isa, blas, attention } = openDevice(named, options);
  const how = library === "cpu" ? `${threads} threads, ${isa}, GEMM: ${blas}` : `attention: ${attention}`;
  return `${library} (${reason}): ${name}, ${how}`;
}
