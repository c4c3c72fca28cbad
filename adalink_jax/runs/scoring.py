"""Scores an adapter, or a base without one."""

import contextlib
from typing import TYPE_CHECKING, Annotated

from adalink_jax import compile_cache
from adalink_jax.adapters.load import adapter_folder, check_adapter, opened_base
from adalink_jax.adapters.texts import check_vocabulary
from adalink_jax.checkpoints import load_adapter, read_record
from adalink_jax.data.own import Table
from adalink_jax.distributed import hosts, sharding
from adalink_jax.distributed.sharding import Layout
from adalink_jax.errors import UserError
from adalink_jax.evaluation import print_table, write
from adalink_jax.methods.base import Method, merge
from adalink_jax.runs import memory
from adalink_jax.runs.folder import RunFolder
from adalink_jax.runs.images import pictures_of
from adalink_jax.runs.options import (
    BaseSetting,
    Data,
    Evaluation,
    Images,
    Layers,
    Precision,
    recorded,
)
from adalink_jax.runs.setup import (
    agree_on_code,
    check_frozen_dtype,
    checked_mesh,
    evaluator,
    own_data,
    prepared_base,
)
from adalink_jax.training import state as states
from adalink_jax.values import LocalPath, Range, Seed, checks

if TYPE_CHECKING:
    from adalink_jax.config.records import Configuration


@hosts.joined()
@compile_cache.kept()
@checks
@memory.shortage()
def evaluate(
    *,
    output_dir: LocalPath,
    data: Data,
    table: Table = Table(),
    images: Images = Images(),
    initial_checkpoint_path: BaseSetting = None,
    adapter_path: LocalPath | None = None,
    in_context: Annotated[int, Range(0)] = 0,
    seed: Seed = 0,
    evaluation: Evaluation = Evaluation(),
    precision: Precision = Precision(),
    layout: Layout = Layout(),
    layers: Layers = Layers(),
    configuration: "Configuration | None" = None,
) -> None:
    """Scores an adapter, or a base without one, on the evaluation splits of a task or mixture.

    Args:
      output_dir: folder for ``results.json``, the predictions, and ``run.json`` with what was
        scored; it must not hold results yet.
      data: the task and its lengths.
      table: a table of the user's own, which becomes the task. The columns, labels and lengths that
        it leaves open are those that the adapter was trained with.
      images: the pictures of tasks that have some, and the encoder that sees them.
      initial_checkpoint_path: the base's path, or the result of `load_base`; None if the adapter
        is a whole model (full fine-tuning).
      adapter_path: the folder of an adapter or of its run; None scores the base without one.
      in_context: number of solved training examples in front of each input.
      seed: seed of the choice of these examples, as in few-shot training.
      evaluation: how the task is scored.
      precision: the dtypes of activations and base.
      layout: how model and batches are laid out on devices.
      layers: whether layers are scanned, and what computes attention.
      configuration: the gin configuration of these arguments, for the records.

    Raises:
      UserError: any mistake that the user can fix; nothing is overwritten.
    """
    from adalink_jax.data.corpus import mixture

    agree_on_code(configuration)
    check_frozen_dtype(precision.frozen_dtype, Method())
    mesh = checked_mesh(layout, evaluation.batch_size, 1, evaluation.batch_size)
    with contextlib.closing(RunFolder(output_dir, "EVAL_OUTPUT_DIR")) as folder:
        if (folder.path / "results.json").exists():
            raise UserError(f"{output_dir} already holds results.json; use another EVAL_OUTPUT_DIR")
        base_path, method, record, adapter = initial_checkpoint_path, Method(), None, None
        model, trained = None, None
        if adapter_path is not None:
            record = read_record(adapter_folder(adapter_path))
            method, trained = record.method, record.data
            if method.trains_base:
                if base_path is not None:
                    raise UserError(
                        f"{adapter_path} is a whole model (full fine-tuning), which needs no base; "
                        "leave INITIAL_CHECKPOINT_PATH out"
                    )
                base_path, method, adapter_path = adapter_path, Method(), None
            elif isinstance(base_path, str):
                model = opened_base(base_path, record).config
        data, evaluation = own_data(data, table, evaluation, base_path, adapter=trained)
        run_settings = {"dtype": precision.dtype, "dropout_rate": 0.0}
        run_settings |= {"scan_layers": layers.scan_layers, "attention": layers.attention}
        base = prepared_base(base_path, model, Method(), 0, run_settings)
        params = base.params
        if adapter_path is not None:
            adapter = load_adapter(
                adapter_folder(adapter_path),
                architecture=base.config,
                base_fingerprint=base.fingerprint,
            )
            check_adapter(base.config, method, adapter.tree, adapter_path)
            params = merge(params, adapter.tree)
        tasks = mixture(data.mixture_or_task_name).tasks
        pictures = pictures_of(images, base.config, data.cache_dir, trained)
        with sharding.on_mesh(mesh):
            names = adapter.route_names if adapter else ()
            scored = evaluator(
                base.config, method, tasks, data, evaluation, mesh, names, in_context, seed,
                pictures=pictures,
            )  # fmt: skip
            if record is not None:
                for vocabulary in scored.vocabularies:
                    check_vocabulary(record, vocabulary)
            if not any(scored.identity.values()):
                raise UserError(f"{data.mixture_or_task_name}: there is no split to score")
            placed = states.place_params(
                base.config, method, params, mesh, layout, precision.frozen_dtype
            )
            results = scored(placed)
        folder.claim("configuration", recorded(configuration.values) if configuration else {})
        folder.claim("base", base.identity)
        folder.claim("data", {"name": data.mixture_or_task_name, "evaluated": scored.identity})
        if folder.writes:
            folder.write_record(configuration.text if configuration else "", 0)
            write(results, folder.path)
            folder.record_outcome()
            print_table(results)
