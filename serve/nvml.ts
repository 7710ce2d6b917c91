// What a graphics card reports of itself, through NVIDIA's management library, which comes with the driver. Opened at run
// time; where it is missing there is nothing to report.
import type { Gpu } from "./types.ts";

const symbols = {
  nvmlInit_v2: { parameters: [], result: "i32" },
  nvmlDeviceGetHandleByUUID: { parameters: ["buffer", "buffer"], result: "i32" },
  nvmlDeviceGetUtilizationRates: { parameters: ["usize", "buffer"], result: "i32" },
  nvmlDeviceGetPowerUsage: { parameters: ["usize", "buffer"], result: "i32" },
  nvmlDeviceGetTemperature: { parameters: ["usize", "i32", "buffer"], result: "i32" },
} as const satisfies Deno.ForeignLibraryInterface;

type Library = Deno.DynamicLibrary<typeof symbols>["symbols"];

/** Where drivers put the library: a task may open it there, a program that may open any library finds it elsewhere, too. */
export const PLACES = [
  "libnvidia-ml.so.1",
  "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1",
  "/usr/lib/aarch64-linux-gnu/libnvidia-ml.so.1",
  "/usr/lib64/libnvidia-ml.so.1",
];

const ON_DIE = 0; // NVML_TEMPERATURE_GPU

let library: Library | null | undefined; // undefined: not looked for yet

/**
 * The state of a card of this machine; null where there is no such card or no library.
 *
 * @param uuid "GPU-..." as in device_info().
 * @param path The library; "" for the driver's.
 */
export function gpuState(uuid: string, path = ""): Gpu | null {
  if (library === undefined || path) library = openFirst(path ? [path] : PLACES);
  if (library === null) return null;
  const handle = new BigUint64Array(1), name = new TextEncoder().encode(uuid + "\0");
  if (library.nvmlDeviceGetHandleByUUID(name, handle) !== 0) return null;
  const device = handle[0]!, rates = new Uint32Array(2), value = new Uint32Array(1); // rates: of GPU and memory, percent
  const or = (code: number, result: () => number) => code === 0 ? result() : null;
  return {
    utilization: or(library.nvmlDeviceGetUtilizationRates(device, rates), () => rates[0]! / 100),
    power_w: or(library.nvmlDeviceGetPowerUsage(device, value), () => value[0]! / 1000),
    temperature_c: or(library.nvmlDeviceGetTemperature(device, ON_DIE, value), () => value[0]!),
  };
}

function openFirst(paths: string[]): Library | null {
  for (const path of paths) {
    try {
      const opened = Deno.dlopen(path, symbols).symbols;
      return opened.nvmlInit_v2() === 0 ? opened : null;
    } catch {
      // no driver, or not permitted
    }
  }
  return null;
}
