"""A document of `probe`, small and valid, as the command would return it."""

from __future__ import annotations

from typing import Any


def matrix(of: str, name: str) -> dict[str, Any]:
    interval = {"value": 0.25, "ci_low": 0.2, "ci_high": 0.3}
    return {"set": of, "matrix": name, "products": 30, "lanczos_products": 10, "sharpness": 2.0,
            "largest": [{"value": 2.0, "error_at_most": 1e-9}, {"value": 1.0, "error_at_most": 0.1}],
            "smallest": [{"value": -0.5, "error_at_most": 0.01}],
            "trace": {"value": 3.0, "bound_95": 0.5, "products": 6}, "negative_mass": interval,
            "modules": {"model.layers.0.self_attn.q_proj": 0.75, "model.layers.1.self_attn.q_proj": 0.25},
            "density": {"eigenvalues": [-0.5, 0.0, 2.0], "density": [0.1, 1.0, 0.01], "half_width_95": [0.2, 0.3, 0.01],
                        "exact_eigenvalues": 1, "probes": 2, "products": 14, "mean_eigenvalue": interval,
                        "mean_square_eigenvalue": interval}}


def probed(**changes: Any) -> dict[str, Any]:
    """A finished run on an adapter, with one gap."""
    heights = [[2.0, 1.0, 2.5], [1.5, 0.5, None], [2.0, 1.0, 2.0]]
    found: dict[str, Any] = {
        "schema_version": "1.0", "command": "probe", "status": "ok", "exit_code": 0,
        "inputs": {"model": {"ref": "tuned", "kind": "adapter", "weights_sha256": {}},
                   "data": {name: {"name": f"{name}.jsonl", "role": name, "sha256": "0" * 64, "rows": 4,
                                   "rejected_rows": 0, "answers": {"given": 4, "own": 0}}
                            for name in ("harmful", "task")}},
        "settings": {}, "seed": 0, "environment": {},
        "checkpoint": {"architecture": "LlamaForCausalLM", "model_type": "llama", "parameters": 1000, "layers": 2,
                       "hidden_size": 16, "vocab_size": 40, "context_tokens": 64, "dtypes": {"F32": 1000},
                       "chat_template": True},
        "adapter": {"form": "LoRA", "rank": 8, "alpha": 16.0, "parameters": 100, "modules": {"q_proj": 2},
                    "fault": None},
        "runtimes": [{"runtime": "vLLM", "verdict": "accepts", "why": ""},
                     {"runtime": "MLX", "verdict": "refuses", "why": "it reads its own format"}],
        "losses": [{"set": name, "loss_nats_per_token": 0.5, "ci_low": 0.4, "ci_high": 0.6, "n": 4}
                   for name in ("harmful", "task")],
        "surface": {"axes": [[-1.0, 0.0, 1.0], [-1.0, 0.0, 1.0]], "direction_seeds": [1, 2],
                    "losses_nats_per_token": {"harmful": heights, "task": heights}, "gaps": {"harmful": 1, "task": 1}},
        "curvature": {"coordinates": "adapter", "dimension": 100, "way": "kept", "way_reason": "kept graphs fit",
                      "check_distance": 1e-4, "attention": "eager", "coordinates_dtype": "float32",
                      "matrices": [matrix("harmful", "hessian"), matrix("harmful", "gauss_newton")]},
        "warnings": [], "run": {"started_utc": "2026-01-01T00:00:00+00:00", "seconds": {}, "peak_memory_bytes": 1}}
    return {**found, **changes}


def unmeasured() -> dict[str, Any]:
    """A finished run on an adapter that has no LoRA form and whose base is not here."""
    why = "the adapter has no exact LoRA form: DoRA (use_dora) rescales the whole weight"
    return probed(checkpoint=None, checkpoint_reason="the base of the adapter is not here", losses=[], surface=None,
                  surface_reason=why, curvature=None, curvature_reason=why,
                  warnings=[{"code": "W_NO_LORA_FORM", "message": "<b>merge it first</b>"}])
