// Muon: the matrices in the layers of a model move along the mean of their gradients made orthogonal: U V^T of its singular
// values' decomposition U S V^T, nearly, by five steps of Newton and Schulz. Everything else is AdamW's (optim.ts).
// As torch.optim.Muon with adjust_lr_fn="match_rms_adamw": the update of a matrix has about the size of AdamW's, so that one
// learning rate and weight decay serve both. Products are of the act type: bfloat16 on a GPU.
import { UserError } from "../base/errors.ts";
import * as k from "../ffi/kernels.ts";
import { UNARY } from "../ffi/library.ts";
import { timeOther } from "./debug.ts";
import { type Block, permanent, release, take } from "./memory.ts";
import { type Address, bytesPerElement, type Tensor } from "./tensor.ts";

const STEPS = 5;
const [A, B, C] = [3.4445, -4.775, 2.0315]; // of Keller Jordan's polynomial a x + b x^3 + c x^5, which leaves 0.7 to 1.2 of any x
const RMS = 0.2; // of AdamW's updates, by one learning rate

/** Settings of Muon. */
export type MuonOptions = {
  muon_momentum?: number; // 0.95 if absent
  weight_decay: number;
};

/** A matrix in the flat buffers: a parameter, or one of several that lie in it one below the other. */
export type Matrix = { from: number; to: number; rows: number; columns: number }; // the first two in elements

/** What is read here of a Slot of Parameters. */
export type NamedTensor = { name: string; tensor: Tensor; offset: number };

/** What is read here of Parameters. */
export type FlatParameters = {
  readonly trained: readonly NamedTensor[];
  readonly updated: { from: number };
  own(range: { from: number; to: number }): { from: number; to: number };
  partsOf(range: { from: number; to: number }): { from: number; to: number; owner: number }[];
  gradAt(element: number): Address;
  weightAt(element: number): Address;
  restAt(element: number): [halves: Address, ties: Address];
};

/** What is read here of an Exchange. */
export type Gathering = {
  beginGather(shares: { address: Address; bytes: number; owner: number }[]): Promise<void>;
  gathered(): void;
};

/** Whether Muon updates a parameter: a matrix in one of a list of layers, such as layers.3.o_proj. */
export function isHidden({ name, tensor }: NamedTensor): boolean {
  return tensor.shape.length === 2 && /\.\d+\./.test(name);
}

/** Matrices that lie in the parts of several ranks. */
export function dividedMatrices(p: FlatParameters): Matrix[] {
  return p.trained.filter(isHidden).flatMap(matricesOf).filter((matrix) => p.partsOf(matrix).length > 1);
}

/** What Muon updates of the parameters of an AdamW, whose first moments m are its momentum. */
export class Muon {
  readonly #matrices: Matrix[];
  readonly #sumsq: Block = permanent(8, "optimizer");

  /** Throws UserError where no matrix of a layer is trained. */
  constructor(readonly parameters: FlatParameters, readonly m: Block, readonly options: MuonOptions) {
    this.#matrices = parameters.trained.filter(isHidden).flatMap(matricesOf);
    if (this.#matrices.length > 0) return;
    const names = parameters.trained.map(({ name }) => name), list = names.slice(0, 3).join(", ");
    throw new UserError(
      `Cannot train with Muon: it updates matrices in layers, and the weights to train have none: ${list}` +
        `${names.length > 3 ? ", ..." : ""}; use --optimizer=adamw`,
    );
  }

  /** Takes gradients, clipped as the control block says, into the momentum, and makes directions of them in their place. */
  begin(control: Address): void {
    const { muon_momentum = 0.95 } = this.options, p = this.parameters;
    for (const { from, to } of this.#matrices.map((matrix) => p.own(matrix))) {
      if (from === to) continue;
      k.muon_momentum(this.#momentumAt(from), p.gradAt(from), control, BigInt(to - from), muon_momentum);
    }
  }

  /** Gives all ranks the whole of each matrix that is divided; any other is needed by the one rank that has it. */
  async share(ranks: Gathering): Promise<void> {
    const p = this.parameters, parts = dividedMatrices(p).flatMap((matrix) => p.partsOf(matrix));
    if (parts.length === 0) return;
    await ranks.beginGather(
      parts.map(({ from, to, owner }) => ({ address: p.gradAt(from), bytes: 4 * (to - from), owner })),
    );
    ranks.gathered();
  }

  /** Moves what is this rank's of each matrix along its direction. */
  update(control: Address): void {
    const p = this.parameters, { weight_decay } = this.options;
    let flops = 0;
    for (const matrix of this.#matrices) {
      const { from, to } = p.own(matrix);
      if (from === to) continue;
      const direction = this.#orthogonalize(p.gradAt(matrix.from), matrix);
      k.muon_update(
        p.weightAt(from),
        ...p.restAt(from),
        direction.address + BigInt(bytesPerElement("act") * (from - matrix.from)),
        control,
        BigInt(to - from),
        RMS * Math.sqrt(Math.max(matrix.rows, matrix.columns)),
        weight_decay,
      );
      release(direction);
      const [n, m] = [matrix.rows, matrix.columns].toSorted((a, b) => a - b) as [number, number];
      flops += STEPS * (3 * n * n * m + n ** 3); // of x x^T and of its square a half
    }
    timeOther("muon", 0, flops);
  }

  /** Multiplies as update() does and moves nothing: the device has chosen how by then. */
  meetProducts(): void {
    for (const matrix of this.#matrices) {
      release(this.#orthogonalize(this.parameters.gradAt(matrix.from), matrix));
    }
  }

  /** x (rows, columns), float32, by its norm, and then STEPS times a x + b (x x^T) x + c (x x^T)^2 x. */
  #orthogonalize(values: Address, { rows, columns }: Matrix): Block {
    const size = rows * columns, side = Math.min(rows, columns), isWide = rows === side;
    const act = bytesPerElement("act");
    let x = take(act * size), next = take(act * size);
    const s = take(act * side * side), sum = take(act * side * side);
    k.grad_sumsq(this.#sumsq.address, values, BigInt(size), 0);
    k.normalize(x.address, values, this.#sumsq.address, BigInt(size));
    for (let step = 0; step < STEPS; step++) {
      k.gram(s.address, x.address, 0n, side, size / side, isWide ? 0 : 1, 1, 0); // s = x x^T; of a tall x x^T x, and x s for s x
      k.gram(sum.address, s.address, s.address, side, side, 0, C, B); // b s + c s s, as s is s^T
      k.unary_forward(next.address, x.address, UNARY.scale, A, BigInt(size));
      const [left, right] = isWide ? [sum, x] : [x, sum];
      k.linear_dgrad(next.address, left.address, right.address, rows, columns, side, 1);
      [x, next] = [next, x];
    }
    for (const block of [next, s, sum]) release(block);
    return x;
  }

  #momentumAt(element: number): Address {
    return this.m.address + BigInt(4 * (element - this.parameters.updated.from));
  }
}

function matricesOf({ name, tensor, offset }: NamedTensor): Matrix[] {
  const [rows, columns] = tensor.shape as [number, number], { parts = [rows] } = tensor.buf.init!;
  let from = offset;
  const matrices = parts.map((rows) => ({ from, to: from += rows * columns, rows, columns }));
  if (from !== offset + tensor.size) {
    throw new RangeError(
      `Cannot split ${name} (${tensor.shape}) for Muon: parts of ${parts} rows are not all of it`,
    );
  }
  if (bytesPerElement("act") === 2 && matrices.some(({ from }) => from % 8 !== 0)) { // a byte of ties, see split_master()
    throw new UserError(
      `Cannot train ${name} (${tensor.shape}) with Muon: on a GPU each of its matrices, of ${parts} rows, should begin at a ` +
        "multiple of 8 elements; choose other sizes, or --optimizer=adamw",
    );
  }
  return matrices;
}
