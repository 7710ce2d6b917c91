// What MFU is measured against: the most that a device can do.
import { device, measurePeak } from "../ffi/library.ts";

/** FLOP/s that no step exceeds, and where the number is from. */
export type Peak = {
  flops: number;
  how: string;
  measured: boolean; // here, and not published by the device's maker
};

/** Dense bfloat16 tensor-core peaks with float32 accumulation, FLOP/s, by the part of a driver's name for a card. */
export const GPU_PEAKS: readonly (readonly [name: string, flops: number])[] = [
  ["H100 PCIe", 756e12],
  ["H100 NVL", 835.5e12],
  ["H100", 989.4e12],
  ["H200 NVL", 835.5e12],
  ["H200", 989.4e12],
  ["GH200", 989.4e12],
  ["GB200", 2500e12],
  ["B200", 2250e12],
  ["A100", 312e12],
  ["L40S", 362e12],
  ["RTX 5090", 209.5e12],
  ["RTX 4090", 165.2e12],
  ["RTX 3090 Ti", 80e12],
  ["RTX 3090", 71e12],
];

/** The published peak of a card by the name that its driver reports; undefined for others, and for a part of a card. */
export function peakOfGpu(name: string): (typeof GPU_PEAKS)[number] | undefined {
  if (/\b(Laptop|Max-Q|MIG|GRID)\b/.test(name)) return undefined; // slower chips of the same name, and slices
  return GPU_PEAKS.find(([card]) => new RegExp(`\\b${card}\\b(?! (Ti|D|SUPER)\\b)`).test(name));
}

/**
 * The peak of the open device, or undefined where it is not known. Of a GPU its dense bfloat16 peak; of a CPU what its
 * threads multiply and add in registers alone, timed now, since no table knows every processor's clock.
 */
export function peakFlops(): Peak | undefined {
  if (device.library === "cuda") {
    const known = peakOfGpu(device.name);
    return known && { flops: known[1], how: `dense bf16 peak of ${known[0]}`, measured: false };
  }
  if (device.library !== "cpu") return undefined;
  const { flops, how } = measurePeak(),
    threads = device.threads === 1 ? "1 thread" : `${device.threads} threads`;
  return { flops, how: `${how} in the registers of ${threads}`, measured: true };
}

/** Model FLOPs utilization: the share of the peak that so many FLOP/s are. A measured peak that is exceeded was too low: it rises. */
export function utilization(peak: Peak | undefined, flops: number): number | null {
  if (!peak) return null;
  if (peak.measured) peak.flops = Math.max(peak.flops, flops);
  return flops / peak.flops;
}
