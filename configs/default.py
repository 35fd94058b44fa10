"""Every key of a config, with its unit and meaning; the values are the paper's.

    python -m flowtok_jax.main --config=configs/h.py:1 --workdir=DIR

Other configs start from this one and change what differs. A stage's own values stand
in `per_stage.STAGE` with the same names; a key given on the command line wins over both
(--config.train.batch_size=256), and a stage's own value given there too
(--config.per_stage.t2i.train.num_steps=500) wins for that stage. Sizes below are
FlowTok-B with the released 256 px tokenizer.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from flowtok_jax.models import dit, tokenizer
from flowtok_jax.runtime.errors import UserError


def get_config() -> ConfigDict:
    """The default config: text-to-image with FlowTok-B."""
    config = ConfigDict()
    config.stages = ("t2i",)  # in order; tokenizer, text_tokenizer, t2i, i2t
    config.per_stage = ConfigDict()  # STAGE -> what differs from the keys below
    # A workdir, or a directory of pretrained weights. From it come the groups that this
    # run needs and does not train, the start of those that it trains (fine-tuning; a
    # group that is not there starts afresh), and the vocabulary.
    config.init_from = ""
    # True: the networks' sizes, the losses and the options of sampling are those stored
    # with the weights, not those below; what the command line gives still wins.
    config.init_config = False

    # The shared sequence of text and image.
    config.latent = ConfigDict({"tokens": 77, "channels": 16})

    config.clip = ConfigDict(
        {
            "width": 768,
            "depth": 12,
            "heads": 12,
            "vocab_size": 49408,
            "embedding_std": 0.02,  # matters for text.weights=random only
        }
    )
    config.text = ConfigDict(
        {
            "weights": "",  # "" from init_from; "random" for a tower never trained
            "seed": 0,  # of the random tower
            # hub id, directory or file; "captions" trains one on data.train
            "vocabulary": "openai/clip-vit-large-patch14-336",
            "vocabulary_captions": 4096,  # how many, for "captions"
        }
    )
    config.tokenizer = ConfigDict(
        {
            "image_size": 256,  # pixels
            "patch": 16,  # pixels
            "latent_scale": 1.0143,  # flow's tokens = raw tokens * this
            "token_std": 0.02,  # initial spread of learned tokens and positions
            "kernel_std": 0.02,  # initial spread of dense layers
            "encoder": tokenizer.SIZES["base"],
            "decoder": tokenizer.SIZES["large"],
        }
    )
    config.projector = ConfigDict(
        {"depth": 6, "heads": 8, "mlp_width": 1024, "dropout": 0.1}
    )
    # target: mlp or average_pool (FlowTok Tab. 4)
    config.align_head = ConfigDict({"width": 512, "target": "mlp"})
    config.dit = ConfigDict(dit.SIZES["b"])
    config.text_decoder = ConfigDict(
        {"depth": 6, "heads": 8, "mlp_width": 1024, "dropout": 0.1}
    )

    config.compute = ConfigDict(
        {
            "dtype": "bfloat16",  # of activations; parameters are float32
            # What of its blocks a backward pass keeps, REMAT of models/layers.py:
            # none      everything that it needs, nothing is computed twice
            # dense     outputs of dense layers and attention; not attention's weights,
            #           norms and activations, which cost little to compute again
            # dense_but_qkv  the same without queries, keys and values
            # residual  what is added to the residual stream
            # full      the blocks' inputs only: a third more work
            "remat": "none",
            "attention": "xla",  # what computes it; or cudnn, on GPUs, at even lengths
        }
    )
    # The grid of devices: copies of the parameters, parts of them, parts of a layer;
    # one may be -1, the rest. Rows of a batch are split over data * fsdp.
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})

    config.train = ConfigDict(
        {
            "num_steps": 1_000_000,
            "batch_size": 4096,  # of all the devices together
            "seed": 0,
            "ema_decay": 0.9999,
            "accumulate": 1,  # parts of a batch that the network sees one by one
            "steps_per_call": 1,  # steps in one call to the device
            # Steps with a loss or gradient that is not finite are skipped and counted;
            # so many in a row end the run.
            "max_skipped_in_a_row": 20,
        }
    )
    config.schedule = ConfigDict(
        {
            "lr": 4e-4,  # peak
            "lr_end": 0.0,  # of the cosine
            "warmup_steps": 5000,
            "schedule": "constant",  # or cosine
        }
    )
    config.optimizer = ConfigDict(
        {
            "betas": (0.9, 0.95),
            "eps": 1e-8,
            "weight_decay": 0.03,  # on all parameters
            "clip_norm": placeholder(float),  # global norm; None: no clipping
            "moments": "float32",  # of Adam, as kept; bfloat16: 4 bytes a value less
        }
    )
    # KL forms: FORM_REDUCTION, see tasks/losses.py.
    config.loss = ConfigDict(
        {
            "tokenizer": {
                "kl": "gaussian_sample_mean",
                "kl_weight": 1e-6,
                "caption_dropout": 0.5,  # rows that decode without caption
            },
            "text_tokenizer": {"kl": "gaussian_sample_mean", "kl_weight": 1e-6},
            "t2i": {
                "null_rate": 0.1,  # rows that learn the null velocity
                "time_location": 0.0,  # of the logit-normal times
                # The release's form. Summed over b rows of 77 * 16 values, its weight
                # equals 0.01 * 1232 * b a mean over elements: 50,463 at 4096 rows.
                "kl": "release_batch_sum",
                "kl_weight": 0.01,
                "align": "contrastive",  # or cosine
                "align_weight": 1.0,
                "align_margin": 0.5,  # of the cosine form
                "align_groups": 1,  # parts of the batch that see only themselves
            },
            "i2t": {
                "null_rate": 0.1,
                "time_location": 0.0,
                "target": "mean",  # or sample, of the text posterior
                "text_scale": 1.0,  # flow's text tokens = raw text tokens * this
            },
        }
    )

    config.data = ConfigDict(
        {
            "train": "",  # a source, KIND[:ARGUMENTS], see data/sources.py
            "eval": "",  # of previews; "" for data.train
            "threads": 16,  # that load images, in each of the workers
            "workers": 0,  # processes that load images; 0: this one
            "prefetch": 4,  # batches loaded ahead
            # Where indices of tars are kept; None: ~/.cache/flowtok_jax/tars.
            "cache": placeholder(str),
            # Share of the records read that may be broken; above it the run stops.
            "max_rejected": 0.05,
            "transform": {
                "crop": "center",  # or random: where the square lies
                "flip": False,  # mirrors half of the images, whatever captions say
                # Captions that a recaption replaces, where there is one.
                "recaption_rate": 0.95,
                "max_pixels": 89_478_485,  # width * height; larger images are refused
            },
            "filters": {
                "aspect": (0.0, 1e6),  # range of height / width; the paper's 0.5 to 2
                "min_side": 0,  # pixels of the longer side; the paper's 256
                "min_aesthetic": placeholder(float),  # None: any
                "max_watermark": placeholder(float),  # None: any; the paper's 0.5
                "aesthetic_column": "aesthetic_score",  # of a record's metadata
                "watermark_column": "pwatermark",
            },
        }
    )
    config.pretokenize = ConfigDict(
        {
            "format": "arrayrecord",  # or tar, as the release reads it
            "shard_records": 8192,  # records of the source behind a shard
            "batch_size": 32,  # images a device encodes at a time
        }
    )
    config.checkpoint = ConfigDict(
        {
            "every": 5000,  # steps; 0: at the end only
            "keep": 2,  # newest checkpoints of a stage
            "keep_every": 0,  # steps; those of its multiples stay too; 0: none
        }
    )
    config.log = ConfigDict(
        {
            "every": 100,  # steps between lines of metrics.jsonl; 0: at the end only
            "preview_every": 5000,  # steps between picture grids; 0: at the end only
            "preview_samples": 64,  # images behind a preview
            # FID of them too, by eval.weights and eval.fid.resize; takes longer than
            # the rest of a preview.
            "preview_fid": False,
        }
    )

    # scale: 1 is no guidance; source: sample or mean of the posterior it starts from;
    # solver: euler or heun; times: release or left, see flow/samplers.py.
    options = {"num_steps": 20, "source": "sample", "solver": "euler"}
    options |= {"times": "release", "batch_size": 64}
    config.sample = ConfigDict({**options, "scale": 2.0})  # text to image
    config.caption = ConfigDict({**options, "scale": 1.0})  # image to text
    config.eval = ConfigDict(
        {
            # Of a part of --mode=eval, and of each accuracy at the end of the demo.
            "samples": 512,
            "parts": (),  # of t2i, i2t, tokenizer; (): all that the weights have
            # Of t2i: coco_fid_30k or mjhq_30k; "": captions and images of data.eval.
            "protocol": "",
            "captions": "",  # the protocol's file, see eval/protocols.py
            # Directory of the networks of metrics, by flowtok_jax.convert; "random":
            # they are never trained, and the metrics' names say so.
            "weights": "",
            "judged": 0,  # samples that these networks see, the first ones; 0: all
            "batch_size": 32,  # images that Inception takes at a time on a device
            "fid": {
                "reference": "",  # npz of eval.reference; "": the images of data.eval
                "resize": "clean",  # or legacy, see eval/features.py
            },
            "seed": 0,  # of the noise
            "chunk": 1000,  # samples computed between what a killed run keeps
        }
    )
    config.bench = ConfigDict(
        {
            "parts": ("text_to_image",),  # or image_to_text, train: what is timed
            "batch_sizes": (4,),  # rows of a call, all devices together
            "num_steps": (20,),  # of the sampler
            "repeats": 5,  # timed calls
            "warmup": 1,  # calls before them
            # That share the rows in sampling, each with all the parameters; 0: all.
            # Training has config.mesh.
            "devices": 1,
            "profile": False,  # one more call of sampling: its time by module
        }
    )
    return config


def only(config: ConfigDict, stage: str) -> ConfigDict:
    """The config reduced to one of its stages; an empty name leaves it as it is."""
    if stage and stage not in config.stages:
        raise UserError(
            f"no stage {stage!r} in this config; wanted one of "
            f"{', '.join(config.stages)}"
        )
    if stage:
        config.stages = (stage,)
    return config
