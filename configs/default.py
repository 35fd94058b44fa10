"""All keys of a config, with units and meaning; the values are the paper's.

    python -m flowtok_jax.main --config=configs/h.py:1 --workdir=DIR

Other configs start from this one and change what differs. `per_stage.STAGE` holds
values for one stage under the same names. A key given on the command line
(--config.train.batch_size=256) wins over both, and a stage's own value given there
(--config.per_stage.t2i.train.num_steps=500) wins for that stage. The sizes are
FlowTok-B's with the released 256 px tokenizer.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from flowtok_jax.data import captions
from flowtok_jax.models import dit, tokenizer
from flowtok_jax.runtime.errors import UserError


def get_config() -> ConfigDict:
    """Returns the default config: text-to-image with FlowTok-B."""
    config = ConfigDict()
    # Some of tokenizer, text_tokenizer, t2i, i2t, in order; both is the last three.
    config.stages = ("t2i",)
    config.per_stage = ConfigDict()  # STAGE -> what differs from the keys below
    # A workdir, or a directory of pretrained weights. It gives the groups that this run
    # needs and does not train, the vocabulary, and the start of the groups that this
    # run trains (fine-tuning; a group that does not exist there starts afresh). What a
    # workdir lacks is looked for in what it started from itself; to start from, only
    # with init_config.
    config.init_from = ""
    # True: sizes of networks, losses and options of sampling are those stored with the
    # weights instead of those below. The command line wins over both.
    config.init_config = False
    # False: groups that this run trains start from nothing, in the sizes below; only
    # networks that it uses and does not train come from `init_from`, in their sizes.
    config.init_trained = True
    # What is not taken from there by init_config: SECTION -> key -> value.
    config.init_changes = ConfigDict()
    # "captions", or what else text.vocabulary takes: a vocabulary in place of that of
    # `init_from`. Rows of the text tower and the text tokenizer stay for words that
    # both have; clip.vocab_size becomes the number of its tokens.
    config.init_vocabulary = ""

    # What is chosen by the data, as configs/own.py asks for it, see modes/survey.py.
    config.own = ConfigDict(
        {
            "size": "",  # auto, small, medium or large; "": nothing is chosen
            "minutes": 0.0,  # that training takes, about; 0: as the pictures need
        }
    )
    _add_networks(config)
    _add_compute(config)
    _add_training(config)
    _add_data(config)
    _add_outputs(config)
    _add_measures(config)
    _add_losses(config)
    return config


def _add_networks(config: ConfigDict) -> None:
    """Adds the sizes and starts of the networks."""
    # The shared sequence of text and image.
    config.latent = ConfigDict({"tokens": 77, "channels": 16})

    # The text tower: features of a token, blocks, heads of attention.
    config.clip = ConfigDict(
        {
            "width": 768,
            "depth": 12,
            "heads": 12,
            "vocab_size": 49408,
            "embedding_std": 0.02,  # initial spread, with text.weights=random
            # Whether t2i trains a tower of its own along, from fresh weights; all else
            # sees the frozen one.
            "trained_along": False,
        }
    )
    config.text = ConfigDict(
        {
            "weights": "",  # "": from init_from; "random": a tower never trained
            "seed": 0,  # of the random tower
            # Hub id, directory or file; "captions" makes one from data.train.
            "vocabulary": "openai/clip-vit-large-patch14-336",
            "vocabulary_captions": 4096,  # records read for "captions"
            # Share of the captions' tokens that the vocabulary may lack before a new
            # run is refused; 1: any.
            "max_unknown": 0.2,
        }
    )
    config.tokenizer = ConfigDict(
        {
            "image_size": 256,  # pixels
            "patch": 16,  # pixels
            "latent_scale": 1.0143,  # flow's tokens = raw tokens * this
            "token_std": 0.02,  # initial spread of learned tokens and positions
            "kernel_std": 0.02,  # initial spread of dense layers
            "encoder": tokenizer.SIZES["base"],  # features of a token, blocks, heads
            "decoder": tokenizer.SIZES["large"],  # the same of the other half
        }
    )
    # From text features to the flow's tokens: blocks, heads, hidden features of the
    # MLPs, share of values that training drops.
    config.projector = ConfigDict(
        {"depth": 6, "heads": 8, "mlp_width": 1024, "dropout": 0.1}
    )
    # Text features that z_txt is aligned with. width: hidden features; target: mlp or
    # average_pool (FlowTok Tab. 4).
    config.align_head = ConfigDict({"width": 512, "target": "mlp"})
    # The flow's transformer: features of a token, blocks, heads.
    config.dit = ConfigDict(dit.SIZES["b"])
    # The same of few steps, configs/distill.py. early: share of the blocks that see the
    # time at which a step begins, the others see its end; takes_scale: whether the
    # guidance is chosen in sampling, and not in training.
    config.student = ConfigDict({"early": 2 / 3, "takes_scale": False})
    # The same of both directions, configs/both.py. tells_direction: whether each has
    # rows of its own, conditional and null; else only the tokens tell them apart.
    config.shared_dit = ConfigDict({"tells_direction": True})
    # From tokens to captions: blocks, heads, hidden features of the MLPs, share of
    # values that training drops.
    config.text_decoder = ConfigDict(
        {"depth": 6, "heads": 8, "mlp_width": 1024, "dropout": 0.1}
    )


def _add_compute(config: ConfigDict) -> None:
    """Adds precision, memory and devices."""
    config.compute = ConfigDict(
        {
            "dtype": "bfloat16",  # of activations; parameters are float32
            # Activations of blocks that the backward pass keeps (REMAT in
            # models/layers.py); it computes the others again:
            # none      all, so that nothing is computed twice
            # dense     outputs of dense layers and attention; attention weights, norms
            #           and activation functions cost little to compute again
            # dense_but_qkv  as dense, without queries, keys and values
            # residual  summands of the residual stream
            # full      inputs of the blocks only: a third more work
            "remat": "none",
            "attention": "xla",  # by xla, or cudnn: on GPUs, at even lengths
            # Shape in which dense layers see activations: batch, [b m d]; rows,
            # [b*m d], with blocks unrolled: for CPUs, where training takes about three
            # quarters of the time (docs/speed.md).
            "layout": "batch",
            # Weights of blocks while drawing and captioning: "" as they are, int8, or
            # int8_dynamic, which rounds what they multiply too (docs/speed.md).
            "quantize": "",
        }
    )
    # Grid of devices: copies of the parameters, parts of them, parts of a layer. One
    # may be -1: all devices left. Rows of a batch are split over data * fsdp.
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})


def _add_training(config: ConfigDict) -> None:
    """Adds steps, schedule and optimiser."""
    config.train = ConfigDict(
        {
            "num_steps": 1_000_000,  # of the optimiser; more extend a finished run
            "batch_size": 4096,  # rows on all devices together
            "seed": 0,  # of first weights, noise and the order of the data
            "ema_decay": 0.9999,  # of the averaged weights, per step
            "ema_warms_up": False,  # decay at most (1 + steps) / (10 + steps)
            "accumulate": 1,  # parts of a batch that the network sees one by one
            "steps_per_call": 1,  # steps in one call to the device
            # A step whose loss or gradient is not finite is skipped and counted; this
            # many in a row end the run.
            "max_skipped_in_a_row": 20,
        }
    )
    config.schedule = ConfigDict(
        {
            "lr": 4e-4,  # peak
            "lr_end": 0.0,  # at the end of the cosine
            "warmup_steps": 5000,  # from 0 to the peak
            "schedule": "constant",  # constant or cosine
        }
    )
    config.optimizer = ConfigDict(
        {
            "name": "adamw",  # or muon: of the blocks' matrices, AdamW of the rest
            "betas": (0.9, 0.95),  # Adam's decay of the mean and of the square
            "eps": 1e-8,  # Adam's
            "weight_decay": 0.03,  # of the parameters that decay
            "decayed": "all",  # or kernels: no biases, norms and embeddings
            "clip_norm": placeholder(float),  # global norm; None: no clipping
            "moments": "float32",  # or bfloat16, which saves 4 bytes per parameter
            "muon": {
                "beta": 0.95,  # decay of the momentum
                "rms": 0.2,  # root mean square of an update / rate; AdamW's is about it
                "rest_lr": 0.33,  # rate of what AdamW moves / schedule.lr
            },
        }
    )

    # Adapters trained in place of the networks (LoRA, docs/lora.md).
    config.lora = ConfigDict(
        {
            "rank": 0,  # columns of A and rows of B; 0: the networks are trained
            "alpha": 8.0,  # a kernel gets alpha / rank * A B added
            "pattern": "blocks/",  # found in the paths of the kernels that get a pair
        }
    )


def _add_losses(config: ConfigDict) -> None:
    """Adds the losses of each task."""
    distilled = {
        "scale_to": placeholder(float),  # end of a range; needs student.takes_scale
        # path: the average of the teacher's own path; or the rule that averages follow,
        # with du/dt by jvp, or by a difference between two calls.
        "method": "path",
        # Euler steps of the teacher's path, for which captions alone (in i2t images
        # alone) are enough; with jvp and difference 0: points of the data's path.
        "trajectory_steps": 16,
        "pairs": 8,  # steps learned of each path, by method path alone
        # By jvp and difference alone.
        "equal_share": 0.5,  # share of rows with r = t: 0, 0.25, 0.5, 0.75 or 1
        "width": 0.005,  # of the difference, in time
        "locations": (-0.4, 1.2),  # of a row's two logit-normal times
        "adaptive_floor": 0.01,  # added to the error that a row is divided by
    }
    # Times 1: values of their own, which the command line can change alone.
    guidance = [c.get_ref("scale") * 1.0 for c in (config.sample, config.caption)]
    # By stage. kl: a form, FORM_REDUCTION, see tasks/losses.py; weights multiply their
    # term of the loss.
    config.loss = ConfigDict(
        {
            "tokenizer": {
                "kl": "gaussian_sample_mean",
                "kl_weight": 1e-6,
                "caption_dropout": 0.5,  # share of rows that decode without caption
                "noise": 0.0,  # l-DeTok's: deviations of the tokens; paper: 3
                # Range of the share of an image's patches that the encoder does not
                # see, at least 0; l-DeTok's paper: -0.1 to 0.7.
                "hidden": (0.0, 0.0),
                "trains": "all",  # or decoder
                # Frozen networks that compare image and copy, from eval.weights.
                "judges": {
                    "lpips_weight": 0.0,  # TA-TiTok: 1
                    "convnext_weight": 0.0,  # TA-TiTok: 0.1
                    "dtype": "float32",
                    "parts": 1,  # parts of the rows that they see one by one
                    "remat": False,  # their layers computed again, to save memory
                },
                "gan": {
                    "weight": 0.0,  # 0: no discriminator; TA-TiTok: 0.1
                    "start": 200_000,  # step at which the discriminator begins
                    "lr": placeholder(float),  # peak; None: schedule.lr
                    "lecam_weight": 0.001,
                    "lecam_decay": 0.999,
                    "width": 128,  # channels of the first stage; doubled by each
                    "stages": 3,  # each halves the sides
                    "grid": 16,  # logits a side
                    "parts": 1,  # parts of the rows in a step of its own
                },
            },
            "text_tokenizer": {"kl": "gaussian_sample_mean", "kl_weight": 1e-6},
            "t2i": {
                "null_rate": 0.1,  # share of rows that learn the null velocity
                "time_location": 0.0,  # of the logit-normal times
                # The release's form sums over b rows of 77 * 16 values. As a mean over
                # elements its weight would be 0.01 * 1232 * b: 50,463 at 4096 rows.
                "kl": "release_batch_sum",
                "kl_weight": 0.01,
                "align": "contrastive",  # contrastive or cosine
                "align_weight": 1.0,
                "align_margin": 0.5,  # of the cosine form
                "align_groups": 1,  # parts of the batch, each contrasted by itself
            },
            "i2t": {
                "null_rate": 0.1,  # as in t2i
                "time_location": 0.0,  # as in t2i
                "target": "mean",  # mean or sample of the text posterior
                "text_scale": 1.0,  # flow's text tokens = raw text tokens * this
            },
            "both": {
                "null_rate": 0.1,  # that of t2i
                "time_location": 0.0,  # that of t2i
                "i2t_weight": 1.0,  # of the flow back to text
                # Of the times of the flow back; None: time_location.
                "i2t_time_location": placeholder(float),
                "caption_weight": 1.0,  # of the captions read off samples
                "image_source": "sample",  # of the flow back: sample or mean
                "target": "mean",  # that of i2t
                "text_scale": 1.0,  # that of i2t
                "kl": "",  # that of t2i
                "kl_weight": 0.01,  # that of t2i
                "align": "",  # that of t2i
                "align_weight": 1.0,  # that of t2i
                "align_margin": 0.5,  # that of t2i
                "align_groups": 1,  # that of t2i
            },
            "t2i_distilled": {
                "scale": guidance[0],  # inside; sample.scale, unless given
                **distilled,
            },
            "i2t_distilled": {
                "scale": guidance[1],  # inside; caption.scale, unless given
                "target": "",  # that of i2t
                "text_scale": 1.0,  # that of i2t
                **distilled,
            },
        }
    )
    for key in ("target", "text_scale"):
        config.loss.i2t_distilled[key] = config.loss.i2t.get_ref(key)
        config.loss.both[key] = config.loss.i2t.get_ref(key)
    for key in config.loss.t2i:  # one way: both may differ
        config.loss.both[key] = config.loss.t2i.get_oneway_ref(key)


def _add_data(config: ConfigDict) -> None:
    """Adds sources, loading and encoding in advance."""
    config.data = ConfigDict(
        {
            "train": "",  # a source, KIND[:ARGUMENTS], see data/source_strings.py
            # The source of previews and evaluation; "": what data.held_out keeps out of
            # data.train, or with 0 data.train.
            "eval": "",
            "held_out": 0.0,  # share of data.train that training never sees, by name
            # A caption of several lines: whole, or its first_line.
            "captions": "whole",
            # Keys of JSON and columns of metadata that hold captions; the first wins.
            "caption_keys": captions.KEYS,
            # Extensions of caption files, beside images and in tars; the first wins.
            "caption_extensions": captions.EXTENSIONS,
            "threads": 16,  # threads that load images, in each worker
            "workers": 0,  # processes that load images; 0: this one
            "prefetch": 4,  # batches loaded ahead
            # Memory of each process of the run for the images of data.train as training
            # sees them. Where all of a source fit, centres are decoded once and not in
            # each epoch; random crops are. `workers` share it. 0: none.
            "keep_gib": 1.0,
            # Directory for indices of tars; None: ~/.cache/flowtok_jax/tars.
            "cache": placeholder(str),
            # Share of the records read that may be broken; beyond it a run stops, and
            # evaluation is refused.
            "max_rejected": 0.05,
            # Whether t2i and i2t train on latents that the run makes of data.train
            # once, in workdir/latents, and do not encode the images of each step; not
            # where images are cropped or flipped at random.
            "encode_first": False,
            "transform": {
                "crop": "center",  # place of the square: center or random
                "flip": False,  # mirrors half of the images, whatever captions say
                # Share of captions replaced by a recaption, for records with one.
                "recaption_rate": 0.95,
                "max_pixels": 89_478_485,  # width * height; larger images are refused
            },
            "filters": {
                "aspect": (0.0, 1e6),  # range of height / width; paper: 0.5 to 2
                "min_side": 0,  # pixels of the longer side; paper: 256
                "min_aesthetic": placeholder(float),  # None: any
                "max_watermark": placeholder(float),  # None: any; paper: 0.5
                "aesthetic_column": "aesthetic_score",  # of a record's metadata
                "watermark_column": "pwatermark",  # of the same
            },
        }
    )
    config.pretokenize = ConfigDict(
        {
            "format": "arrayrecord",  # arrayrecord; tar, the release's format
            "shard_records": 8192,  # records of the source in one shard
            "batch_size": 32,  # images that a device encodes at a time
        }
    )


def _add_outputs(config: ConfigDict) -> None:
    """Adds checkpoints, metrics and previews of a run."""
    config.checkpoint = ConfigDict(
        {
            "every": 5000,  # steps; 0: at the end only
            "keep": 2,  # newest checkpoints of a stage that stay
            "keep_every": 0,  # steps; checkpoints at multiples stay too; 0: none
        }
    )
    config.log = ConfigDict(
        {
            "every": 100,  # steps between lines of metrics.jsonl; 0: at the end only
            "preview_every": 5000,  # steps between picture grids; 0: at the end only
            "preview_samples": 64,  # images behind a preview
            # Adds their FID, of a tokenizer's copies rFID, by eval.weights and
            # eval.fid.resize; takes longer than the rest of a preview.
            "preview_fid": False,
            "preview_lpips": False,  # adds LPIPS of a tokenizer's copies, by the same
        }
    )


def _add_measures(config: ConfigDict) -> None:
    """Adds sampling, evaluation and timing."""
    options = {
        "num_steps": 20,  # of the solver
        "source": "sample",  # sample or mean of the posterior the flow starts from
        "solver": "euler",  # euler or heun; average: a distilled flow
        "times": "release",  # release, left or early, see flow/samplers.py
        "batch_size": 64,  # rows on all devices together
        # Captions of an image, of which the one is kept that text to image draws
        # nearest to the image; 1 in text to image.
        "candidates": 1,
    }
    # Text to image. scale: of the guidance; 1 is without.
    config.sample = ConfigDict({**options, "scale": 2.0})
    # Image to text. scale: of the guidance; 1 is without.
    config.caption = ConfigDict({**options, "scale": 1.0})
    config.eval = ConfigDict(
        {
            # Whether training ends in an evaluation on data.eval, with pictures, what
            # looks weak and what would help; see docs/training.md.
            "after_training": False,
            # Samples of each part of --mode=eval, and of the demo's accuracies.
            "samples": 512,
            "parts": (),  # some of t2i, i2t, tokenizer; (): all that weights exist for
            # Protocol of t2i: coco_fid_30k or mjhq_30k; "": data.eval.
            "protocol": "",
            "captions": "",  # the protocol's file, see eval/protocols.py
            # Directory of the metrics' networks, by flowtok_jax.convert; "random":
            # networks never trained, and the metrics' names say so.
            "weights": "",
            # Data that networks of weights=random judge: generated scenes, all or none.
            "random_metrics": "scenes",
            "judged": 0,  # samples that these networks see, from the first; 0: all
            "batch_size": 32,  # images of Inception and LPIPS at a time on a device
            "fid": {
                "reference": "",  # npz of eval.reference; "": images of data.eval
                "resize": "clean",  # clean or legacy, see eval/features.py
            },
            # Whether the own real image of a drawn one is the nearest, by
            # eval/retrieval.py.
            "retrieval": {
                "side": 16,  # pixels a side that images are averaged to; 0: none
                "gallery": "",  # a source that is searched beside data.eval
                # Different images searched at most; evaluated ones always are.
                "images": 10_000,
            },
            "seed": 0,  # of the noise, and of which pictures are taken, previews' too
            "chunk": 1000,  # samples stored at a time; a killed run keeps whole chunks
        }
    )
    config.bench = ConfigDict(
        {
            "parts": ("text_to_image",),  # programs to time; image_to_text, train
            "batch_sizes": (4,),  # rows of a call on all devices together
            "num_steps": (20,),  # of the sampler
            "repeats": 5,  # timed calls
            "warmup": 1,  # calls before them
            # Devices that share the rows in sampling, each with all parameters; 0: all.
            # Training uses config.mesh.
            "devices": 1,
            "profile": False,  # profiles one more call of sampling: time by module
            # In place of the parts above, the rows of a suite for one device, see
            # perf/suite_table.py: full, or small, tiny networks for a CPU; "": none.
            "suite": "",
            "minutes": 8.0,  # after which no row of the suite is begun
        }
    )


def only(config: ConfigDict, stage: str) -> ConfigDict:
    """Reduces a config to one of its stages; an empty name keeps all of them."""
    if stage and stage not in config.stages:
        raise UserError(
            f"no stage {stage!r} in this config; expected one of "
            f"{', '.join(config.stages)}"
        )
    if stage:
        config.stages = (stage,)
    return config


def from_trained(stage: str) -> ConfigDict:
    """Returns a config that trains one stage further on what --checkpoint names.

    Sizes, losses and options of sampling are those stored with the weights.
    """
    config = get_config()
    config.stages = (stage,)
    config.init_config = True
    config.dit = ConfigDict(dit.SIZES["xl"])  # until the weights' own size is read
    config.compute.remat = "dense"  # recomputes hardly anything
    config.optimizer.clip_norm = 1.0
    config.schedule.warmup_steps = 200
    config.checkpoint.every = 500
    config.log.update({"every": 50, "preview_samples": 16})
    return config
