"""Scores an adapter, or a base alone."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from adalink_jax.adapters.load import adapter_folder, check_adapter
from adalink_jax.checkpoints import load_adapter
from adalink_jax.distributed import hosts, sharding
from adalink_jax.errors import UserError
from adalink_jax.evaluation import print_table, write
from adalink_jax.methods.base import Method, merge
from adalink_jax.runs.folder import RunFolder
from adalink_jax.runs.setup import (
    agree_on_code,
    check_counts,
    check_frozen_dtype,
    checked_mesh,
    evaluator,
    prepared_base,
)
from adalink_jax.training import state as states

if TYPE_CHECKING:
    from adalink_jax.config.records import Configuration


@hosts.joined()
def evaluate(
    *,
    output_dir: str,
    mixture_or_task_name: str,
    task_feature_lengths: Mapping[str, int],
    initial_checkpoint_path: str | None = None,
    adapter_path: str | None = None,
    dtype: str = "float32",
    scan_layers: bool | None = None,
    mode: str = "rank_classification",
    batch_size: int = 64,
    limit: int | None = None,
    in_context: int = 0,
    seed: int = 0,
    model_parallelism: int = 1,
    fully_sharded: bool = False,
    slices: int = 1,
    devices: int | None = None,
    frozen_dtype: str = "float32",
    cache_dir: str | None = None,
    configuration: "Configuration | None" = None,
) -> None:
    """Scores an adapter, or a base alone, on the evaluation splits of a task or mixture.

    Args:
      output_dir: takes ``results.json``, the predictions, and ``run.json`` that says what was
        scored; must not hold results yet.
      mixture_or_task_name: registered with SeqIO.
      task_feature_lengths: {"inputs": T, "targets": L} in tokens.
      initial_checkpoint_path: the base; None where the adapter is a model (full fine-tuning).
      adapter_path: an adapter's folder or its run's; None scores the base alone.
      dtype: of the activations.
      scan_layers: as in `train`.
      mode: "rank_classification", "greedy" or "beam".
      batch_size: rows of a batch.
      limit: examples of a split that are evaluated; None for all.
      in_context: training examples that stand solved in front of each input.
      seed: which of them, as in few-shot training.
      model_parallelism: devices that share the products of one model.
      fully_sharded: whether the base's matrices are split over all devices of a slice.
      slices: groups of devices with a slower network between them, as `sharding.Layout`.
      devices: how many devices the run expects; None takes what is there.
      frozen_dtype: in which devices store the base, as in `train`.
      cache_dir: where token arrays are cached.
      configuration: what gin resolved these arguments from.

    Raises:
      UserError: whatever the user can mend; nothing is overwritten.
    """
    from adalink_jax.data.corpus import mixture

    agree_on_code(configuration)
    check_counts(batch_size=batch_size)
    check_frozen_dtype(frozen_dtype, Method())
    layout = sharding.Layout(model_parallelism, fully_sharded, slices, devices)
    mesh = checked_mesh(layout, batch_size, 1, batch_size)
    folder = RunFolder(output_dir)
    if (folder.path / "results.json").exists():
        raise UserError(f"{output_dir} already holds results.json; use another EVAL_OUTPUT_DIR")
    base_path, method, adapter = initial_checkpoint_path, Method(), None
    if adapter_path is not None:
        adapter = load_adapter(adapter_folder(adapter_path))
        method = adapter.method
        if method.trains_base:
            if base_path is not None:
                raise UserError(
                    f"{adapter_path} is a whole model (full fine-tuning), which needs no base; "
                    "leave INITIAL_CHECKPOINT_PATH out"
                )
            base_path, method, adapter = adapter_path, Method(), None
    how = {"dtype": dtype, "dropout_rate": 0.0, "scan_layers": scan_layers}
    base = prepared_base(base_path, None, Method(), 0, how)
    params = base.params
    if adapter is not None:
        adapter = load_adapter(
            adapter_folder(str(adapter_path)),
            architecture=base.config,
            base_fingerprint=base.fingerprint,
        )
        check_adapter(base.config, method, adapter.tree, str(adapter_path))
        params = merge(params, adapter.tree)
    tasks = mixture(mixture_or_task_name).tasks
    with sharding.on_mesh(mesh):
        scored = evaluator(
            base.config, method, tasks, task_feature_lengths, mesh, mode, batch_size, limit,
            cache_dir, adapter.route_names if adapter else (), in_context, seed,
        )  # fmt: skip
        placed = states.place_params(base.config, method, params, mesh, layout, frozen_dtype)
        results = scored(placed)
    folder.claim("configuration", configuration.values if configuration else {})
    folder.claim("base", base.identity)
    folder.claim("data", {"name": mixture_or_task_name, "evaluated": scored.identity})
    if folder.writes:
        folder.write_record(configuration.text if configuration else "", 0)
        write(results, folder.path)
        print_table(results)
