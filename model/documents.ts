// Whether the documents that lie in one window are kept apart: attention does not cross from one into another, and positions
// begin anew in each.
import type { Dataset } from "../data/bins.ts";

/** What is read here of the variables of train.ts. */
export type MaskConfig = { document_mask: string };

/** Says of document_mask what auto is for this data, which a run that goes on has to keep. */
export function chooseMask(config: MaskConfig, { template }: Dataset): void {
  if (config.document_mask === "auto") config.document_mask = `${template !== undefined}`;
}

/** Whether they are, once chooseMask() has been called. */
export function keepsApart({ document_mask }: Partial<MaskConfig>): boolean {
  return document_mask === "true";
}
