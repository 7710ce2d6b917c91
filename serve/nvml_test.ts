import { assert, assertEquals } from "@std/assert";
import { findCompiler } from "../tools/build.ts";
import { gpuState } from "./nvml.ts";

const STAND_IN = `
#include <stdint.h>
#include <string.h>
int nvmlInit_v2(void) { return FAILS_INIT; }
int nvmlDeviceGetHandleByUUID(const char* uuid, uint64_t* device) {
  if (strcmp(uuid, "GPU-1234")) return 6;
  *device = 77;
  return 0;
}
int nvmlDeviceGetUtilizationRates(uint64_t device, unsigned* rates) { return rates[0] = 87, rates[1] = 40, device != 77; }
int nvmlDeviceGetPowerUsage(uint64_t device, unsigned* milliwatts) { return *milliwatts = 350500, device != 77; }
int nvmlDeviceGetTemperature(uint64_t device, int sensor, unsigned* celsius) { return *celsius = 61, 3; }
`;

async function compile(path: string, failsInit: number): Promise<void> {
  Deno.writeTextFileSync(`${path}.c`, STAND_IN);
  const { command } = await findCompiler();
  const args = ["-x", "c", `-DFAILS_INIT=${failsInit}`, "-shared", "-fPIC", `${path}.c`, "-o", path];
  const { success, stderr } = await new Deno.Command(command, { args, stderr: "piped" }).output();
  assert(success, new TextDecoder().decode(stderr));
}

Deno.test({
  name: "gpuState() converts units and leaves out what the card does not say",
  sanitizeResources: false, // libraries stay loaded for the life of the process
  fn: async () => {
    const dir = Deno.makeTempDirSync();
    try {
      await compile(`${dir}/works.so`, 0);
      await compile(`${dir}/fails.so`, 9);
      assertEquals(gpuState("GPU-1234", `${dir}/fails.so`), null);
      assertEquals(gpuState("GPU-1234", `${dir}/missing.so`), null);
      const state = { utilization: 0.87, power_w: 350.5, temperature_c: null }; // its temperature is not supported
      assertEquals(gpuState("GPU-1234", `${dir}/works.so`), state);
      assertEquals(gpuState("GPU-1234"), state); // the library that is open
      assertEquals(gpuState("GPU-other"), null);
    } finally {
      Deno.removeSync(dir, { recursive: true });
    }
  },
});
