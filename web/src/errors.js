// The errors of this module. Each message says what is wrong, the value, and what to do.

export class DeployError extends Error {
  name = "DeployError";
}

/** A bundle that cannot be loaded: a file that is missing, damaged, or of a later release. */
export class BundleError extends DeployError {
  name = "BundleError";
}

/** Inputs that the model does not take. */
export class InputError extends DeployError {
  name = "InputError";
}

/** onnxruntime-web failed, for a reason other than the inputs. */
export class RunError extends DeployError {
  name = "RunError";
}

/** A stream that cannot go on. */
export class StreamError extends DeployError {
  name = "StreamError";
}
