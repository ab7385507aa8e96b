"""What we lean on inside the hosts: functions and classes that they promise to nobody, and a release may change.

Each has the parameters that our code passes or takes, and what it is for; `drift` compares them with what is installed.
What is not here is the hosts' interface: the arguments and files that their documentation describes.
"""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any, NamedTuple

from rebalance.versions import versions

ATTRIBUTE = "="  # in the place of parameters: it is there, whatever it is


class Order(NamedTuple):
    """Texts that the source of a function has, in this order."""

    function: str
    texts: tuple[str, ...]
    why: str


# What it is for -> name -> its parameters
_TRAINER = "ultralytics.engine.trainer.BaseTrainer"
_DETECT = "ultralytics.models.yolo.detect"
_HEAD = "ultralytics.nn.modules.head.Detect"
_AUGMENT = "ultralytics.data.augment"
INSIDES: dict[str, dict[str, str]] = {
    "the trainer builds model, head and loss of our flags (train/trainer.py)": {
        f"{_TRAINER}.__init__": "self cfg overrides _callbacks",
        f"{_TRAINER}.setup_model": "self",
        f"{_TRAINER}.resume_training": "self ckpt",
        f"{_TRAINER}.check_resume": "self overrides",
        f"{_TRAINER}.run_callbacks": "self event",
        f"{_TRAINER}.save_metrics": "self metrics",
        f"{_TRAINER}.get_model": "self cfg weights verbose",
        f"{_TRAINER}.get_validator": "self",
        f"{_TRAINER}.build_dataset": "self img_path mode batch",
        f"{_TRAINER}.preprocess_batch": "self batch",
        f"{_TRAINER}.set_class_weights": "self",
        f"{_DETECT}.DetectionTrainer": ATTRIBUTE,
        f"{_DETECT}.train.DetectionTrainer.__init__": "self cfg overrides _callbacks",
        f"{_DETECT}.train.DetectionTrainer.get_model": "self cfg weights verbose",
        f"{_DETECT}.train.DetectionTrainer.get_validator": "self",
        f"{_DETECT}.train.DetectionTrainer.build_dataset": "self img_path mode batch",
        f"{_DETECT}.train.DetectionTrainer.preprocess_batch": "self batch",
        f"{_DETECT}.train.DetectionTrainer.set_class_weights": "self",
        f"{_DETECT}.train.DetectionTrainer.set_model_names_for_load": "self model",
        "ultralytics.engine.trainer.get_cfg": "cfg overrides",
    },
    "schedules of other frameworks (train/schedule.py)": {
        f"{_TRAINER}._setup_scheduler": "self",
        f"{_TRAINER}.build_optimizer": "self model name lr momentum decay iterations",
        f"{_TRAINER}.optimizer_step": "self",
    },
    "a killed run goes on exactly (train/resumable.py)": {
        f"{_TRAINER}.train": "self",
        f"{_TRAINER}._do_train": "self",
        f"{_TRAINER}.save_model": "self",
        f"{_TRAINER}.final_eval": "self",
        f"{_TRAINER}._handle_nan_recovery": "self epoch",
        f"{_TRAINER}._build_train_pipeline": "self",
        f"{_TRAINER}._close_dataloader_mosaic": "self",
        f"{_DETECT}.train.DetectionTrainer._build_train_pipeline": "self",
        "ultralytics.engine.trainer.strip_optimizer": "f s updates",
        "ultralytics.data.build.InfiniteDataLoader": ATTRIBUTE,
        "ultralytics.engine.trainer.generate_ddp_command": "trainer",
        "ultralytics.utils.torch_utils.init_seeds": "seed deterministic",
    },
    "runs of a sweep share the images that they keep in memory (experiments/image_cache.py)": {
        "ultralytics.data.base.BaseDataset.cache_images": "self",
    },
    "every image is validated, and regions count in no way (train/validator.py, train/unjudged.py)": {
        "ultralytics.engine.validator.BaseValidator.build_dataset": "self img_path",
        "ultralytics.engine.validator.BaseValidator.init_metrics": "self model",
        "ultralytics.engine.validator.BaseValidator.postprocess": "self preds",
        "ultralytics.engine.validator.BaseValidator.preprocess": "self batch",
        "ultralytics.engine.validator.BaseValidator.update_metrics": "self preds batch",
        f"{_DETECT}.DetectionValidator": ATTRIBUTE,
        f"{_DETECT}.val.DetectionValidator._process_batch": "self preds batch",
        f"{_DETECT}.val.DetectionValidator.build_dataset": "self img_path mode batch",
        f"{_DETECT}.val.DetectionValidator.init_metrics": "self model",
        f"{_DETECT}.val.DetectionValidator.postprocess": "self preds",
        f"{_DETECT}.val.DetectionValidator.preprocess": "self batch",
        f"{_DETECT}.val.DetectionValidator.update_metrics": "self preds batch",
        "ultralytics.utils.metrics.ConfusionMatrix.__init__": "self names task save_matches",
        "ultralytics.utils.metrics.ConfusionMatrix._append_matches": "self mtype batch idx",
        "ultralytics.utils.metrics.ConfusionMatrix.process_batch": "self detections batch conf iou_thres",
        "ultralytics.utils.metrics.DetMetrics.__init__": "self names",
        "ultralytics.utils.metrics.DetMetrics.process": "self save_dir plot on_plot",
        "ultralytics.utils.metrics.DetMetrics.update_stats": "self stat",
        "ultralytics.utils.metrics.ap_per_class": (
            "tp conf pred_cls target_cls plot on_plot save_dir names eps prefix"
        ),
        "ultralytics.utils.nms.non_max_suppression": (
            "prediction conf_thres iou_thres classes agnostic multi_label max_det nc max_time_img max_nms max_wh "
            "rotated end2end return_idxs"
        ),
    },
    "what is found is kept, with every score, for audits and records (audit/detect.py, experiments/evaluate.py)": {
        f"{_DETECT}.DetectionPredictor": ATTRIBUTE,
        f"{_DETECT}.predict.DetectionPredictor.postprocess": "self preds img orig_imgs kwargs",
        f"{_DETECT}.val.DetectionValidator.get_stats": "self",
        "ultralytics.engine.model.Model._smart_load": "self key",
        "ultralytics.engine.predictor.BasePredictor.postprocess": "self preds img orig_imgs",
        "ultralytics.engine.results.Results": ATTRIBUTE,
        "ultralytics.engine.validator.BaseValidator.get_stats": "self",
        "ultralytics.utils.ops.scale_boxes": "img1_shape boxes img0_shape ratio_pad padding xywh",
        "ultralytics.utils.patches.imread": "filename flags",
    },
    "arguments and files are read as the host reads them (train/admission.py, train/arguments.py)": {
        "ultralytics.cfg.QUANTIZE_ALIASES": ATTRIBUTE,
        "ultralytics.cfg.get_cfg": "cfg overrides",
        "ultralytics.data.utils.IMG_FORMATS": ATTRIBUTE,
        "ultralytics.data.utils.exif_size": "img",
        "ultralytics.data.utils.find_dataset_yaml": "path",
        "ultralytics.utils.DEFAULT_CFG_DICT": ATTRIBUTE,
        "ultralytics.utils.IterableSimpleNamespace": ATTRIBUTE,
        "ultralytics.utils.LOCAL_RANK": ATTRIBUTE,
        "ultralytics.utils.LOGGER": ATTRIBUTE,
        "ultralytics.utils.ONLINE": ATTRIBUTE,
        "ultralytics.utils.RANK": ATTRIBUTE,
        "ultralytics.utils.SETTINGS": ATTRIBUTE,
        "ultralytics.utils.YAML": ATTRIBUTE,
        "ultralytics.utils.checks.check_imgsz": "imgsz stride min_dim max_dim floor",
        "ultralytics.utils.checks.check_yaml": "file suffix hard",
        "ultralytics.utils.torch_utils.MODELOPT_REQUIREMENTS": ATTRIBUTE,
        "ultralytics.utils.torch_utils.parse_device": "device",
        "ultralytics.utils.torch_utils.unwrap_model": "m",
    },
    "regions go through the augmentation beside the labels (train/regions.py)": {
        f"{_AUGMENT}.Albumentations.__call__": "self labels",
        f"{_AUGMENT}.BaseMixTransform": ATTRIBUTE,
        f"{_AUGMENT}.BaseTransform.__call__": "self labels",
        f"{_AUGMENT}.BaseTransform.apply_instances": "self labels params",
        f"{_AUGMENT}.Compose": ATTRIBUTE,
        f"{_AUGMENT}.CopyPaste": ATTRIBUTE,
        f"{_AUGMENT}.CutMix.apply_instances": "self labels params",
        f"{_AUGMENT}.Format.apply_instances": "self labels params",
        f"{_AUGMENT}.LetterBox.apply_instances": "self labels params",
        f"{_AUGMENT}.MixUp.apply_instances": "self labels params",
        f"{_AUGMENT}.Mosaic.apply_instances": "self labels params",
        f"{_AUGMENT}.RandomHSV": ATTRIBUTE,
        f"{_AUGMENT}.RandomFlip.apply_instances": "self labels params",
        f"{_AUGMENT}.RandomPerspective.apply_bboxes": "self bboxes M",
        f"{_AUGMENT}.RandomPerspective.apply_instances": "self labels params",
        f"{_AUGMENT}.RandomPerspective.box_candidates": "box1 box2 wh_thr ar_thr area_thr eps",
        "ultralytics.data.base.BaseDataset.__init__": ATTRIBUTE,
        "ultralytics.data.base.BaseDataset.build_transforms": "self hyp",
        "ultralytics.data.base.BaseDataset.get_image_and_label": "self index",
        "ultralytics.data.base.BaseDataset.get_labels": "self",
        "ultralytics.data.base.BaseDataset.update_labels": "self include_class",
        "ultralytics.data.build.YOLODataset": ATTRIBUTE,
        "ultralytics.data.dataset.YOLODataset.__init__": "self args data task kwargs",
        "ultralytics.data.dataset.YOLODataset.build_transforms": "self hyp",
        "ultralytics.data.dataset.YOLODataset.collate_fn": "batch",
        "ultralytics.data.dataset.YOLODataset.get_labels": "self",
        "ultralytics.utils.instance.Instances": "bboxes segments keypoints bbox_format normalized",
        "ultralytics.utils.metrics.bbox_ioa": "box1 box2 iou eps",
    },
    "our heads are heads of the host (hosts/ultralytics/model.py, hosts/torchvision/head.py)": {
        f"{_HEAD}.__init__": "self nc reg_max end2end ch",
        f"{_HEAD}._inference": "self x",
        f"{_HEAD}._get_decode_boxes": "self x",
        f"{_HEAD}.anchors": ATTRIBUTE,
        f"{_HEAD}.bias_init": "self",
        f"{_HEAD}.forward": "self x",
        f"{_HEAD}.forward_head": "self x box_head cls_head",
        f"{_HEAD}.fuse": "self",
        f"{_HEAD}.one2many": ATTRIBUTE,
        f"{_HEAD}.one2one": ATTRIBUTE,
        "torchvision.ops.feature_pyramid_network.ExtraFPNBlock.forward": "self results x names",
    },
    "our models are models of the host (hosts/*/model.py)": {
        "ultralytics.nn.tasks.BaseModel._predict_once": "self x profile embed",
        "ultralytics.nn.tasks.BaseModel._remap_cls_by_names": "self csd src_model verbose",
        "ultralytics.nn.tasks.BaseModel.init_criterion": "self",
        "ultralytics.nn.tasks.BaseModel.is_fused": "self",
        "ultralytics.nn.tasks.BaseModel.load": "self weights verbose",
        "ultralytics.nn.tasks.DetectionModel.__init__": "self cfg ch nc verbose",
        "ultralytics.nn.tasks.DetectionModel.init_criterion": "self",
        "ultralytics.nn.tasks.load_checkpoint": "weight device inplace fuse",
        "ultralytics.nn.tasks.yaml_model_load": "path",
    },
    "our losses take the host's assignment (hosts/ultralytics/criterion.py)": {
        "ultralytics.utils.loss.v8DetectionLoss.__init__": "self model tal_topk tal_topk2",
        "ultralytics.utils.loss.v8DetectionLoss.loss": "self preds batch",
        "ultralytics.utils.loss.v8DetectionLoss.get_assigned_targets_and_loss": "self preds batch assign_kwargs",
        "ultralytics.utils.loss.E2ELoss": "model loss_fn",
        "ultralytics.utils.loss.E2ELoss.update": "self",
    },
    "every route into a training is ours or refused (train/api.py, train/tune.py, hosts/host.py)": {
        "ultralytics.engine.model.Model._load": "self weights task",
        "ultralytics.engine.model.Model.benchmark": "self data format verbose kwargs",
        "ultralytics.engine.model.Model.export": "self kwargs",
        "ultralytics.engine.model.Model.load": "self weights",
        "ultralytics.engine.model.Model.predict": "self source stream predictor kwargs",
        "ultralytics.engine.model.Model.track": "self source stream persist kwargs",
        "ultralytics.engine.model.Model.train": "self trainer kwargs",
        "ultralytics.engine.model.Model.tune": "self use_ray iterations args kwargs",
        "ultralytics.engine.model.Model.val": "self validator kwargs",
        "ultralytics.engine.trainer.MultiTrainer": "trainer args model _callbacks",
        "ultralytics.engine.tuner.Tuner.__init__": "self args _callbacks model",
        "ultralytics.engine.tuner.Tuner.__call__": "self iterations cleanup",
        "ultralytics.engine.tuner.Tuner._constrain": "self hyp",
        "ultralytics.utils.tuner.run_ray_tune": (
            "model space grace_period gpu_per_trial iterations search_alg train_args"
        ),
    },
    "the host's command takes our flags (cli/hook.py, cli/host_command.py)": {
        "ultralytics.cfg.entrypoint": "debug",
        "ultralytics.cfg.merge_equals_args": "args",
        "ultralytics.cfg.smart_value": "v",
        "ultralytics.cfg.MODES": ATTRIBUTE,
        "ultralytics.cfg.TASKS": ATTRIBUTE,
        "ultralytics.utils.downloads.GITHUB_ASSETS_NAMES": ATTRIBUTE,
        "ultralytics.utils.downloads.GITHUB_ASSETS_STEMS": ATTRIBUTE,
    },
    "torchvision's layers, weights and anchors (hosts/torchvision)": {
        "torchvision.models._utils.IntermediateLayerGetter": "model return_layers",
        "torchvision.models.detection.anchor_utils.AnchorGenerator.set_cell_anchors": "self dtype device",
        "torchvision.models.detection.anchor_utils.AnchorGenerator.grid_anchors": "self grid_sizes strides",
        "torchvision.models.detection.faster_rcnn.FastRCNNConvFCHead": "input_size conv_layers fc_layers norm_layer",
        "torchvision.models.detection.faster_rcnn.FastRCNNPredictor": "in_channels num_classes",
        "torchvision.models.detection.faster_rcnn.TwoMLPHead": "in_channels representation_size",
        "torchvision.models.detection.retinanet.RetinaNetHead": "in_channels num_anchors num_classes norm_layer",
        "torchvision.models.detection.rpn.RPNHead": "in_channels num_anchors conv_depth",
        "torchvision.models.detection.ssd.SSDHead": "in_channels num_anchors num_classes",
        "torchvision.models.detection.ssdlite.SSDLiteHead": "in_channels num_anchors num_classes norm_layer",
        "torchvision.ops.feature_pyramid_network.FeaturePyramidNetwork": (
            "in_channels_list out_channels extra_blocks norm_layer"
        ),
        "torchvision.ops.feature_pyramid_network.LastLevelMaxPool": ATTRIBUTE,
        "torchvision.ops.feature_pyramid_network.LastLevelP6P7": "in_channels out_channels",
        "torchvision.ops.poolers.LevelMapper.__call__": "self boxlists",
        "torchvision.ops.poolers.MultiScaleRoIAlign.forward": "self x boxes image_shapes",
    },
    "our losses are timed beside the hosts' own (bench)": {
        "torchvision.models.detection._utils.BoxCoder": "weights bbox_xform_clip",
        "torchvision.models.detection._utils.Matcher": "high_threshold low_threshold allow_low_quality_matches",
        "torchvision.models.detection._utils.SSDMatcher": "threshold",
        "torchvision.models.detection.retinanet.RetinaNet.compute_loss": "self targets head_outputs anchors",
        "torchvision.models.detection.roi_heads.RoIHeads": ATTRIBUTE,
        "torchvision.models.detection.rpn.RegionProposalNetwork": ATTRIBUTE,
        "torchvision.models.detection.ssd.SSD.compute_loss": "self targets head_outputs anchors matched_idxs",
        "ultralytics.nn.autobackend.AutoBackend": ATTRIBUTE,
    },
}
ORDERS = (
    Order(
        f"{_TRAINER}._setup_train", ("self.set_class_weights()", "ModelEMA("),
        "anchors and criterion are set before the moving average copies the model",
    ),
    Order(
        f"{_TRAINER}._setup_train", ("self.setup_model()", "self._build_train_pipeline()", "self.resume_training("),
        "the model is there before the data, and both before a run goes on",
    ),
    Order(
        f"{_TRAINER}.check_resume", ("load_checkpoint(", "self.args = get_cfg(ckpt_args)"),
        "of the arguments that a checkpoint keeps our flags are taken out when our trainer resumes it",
    ),
    Order(
        "ultralytics.engine.validator.BaseValidator.__init__", ("self.args = get_cfg(overrides=args)",),
        "a run of ours that the host resumes with its own loss stops at our flags before the first step",
    ),
    Order(
        f"{_TRAINER}.__init__", ("self.check_resume(", "self.wdir.mkdir("),
        "what is refused there is refused before a folder is made",
    ),
    Order(
        f"{_TRAINER}.save_model", ('"train_args": vars(self.args)',), "our flags are among a checkpoint's arguments"
    ),
    Order(
        "ultralytics.engine.model.Model.train",
        ('args.get("resume") is True', "(overrides=args, _callbacks=self.callbacks)", "get_model(weights=weights"),
        "the trainer is made of the arguments, and gets the model of a checkpoint",
    ),
    Order(
        "ultralytics.engine.tuner.Tuner.__call__",
        ("from ultralytics.engine.trainer import MultiTrainer", "vars(self.args), **mutated_hyp", "MultiTrainer(None,"),
        "each try of a search is trained by the trainer that we put in the place of a process",
    ),
    Order(
        "ultralytics.engine.trainer.MultiTrainer.train", ("self.trainer(overrides=overrides", "trainer.get_model("),
        "of several sets each is trained by our trainer",
    ),
    Order(
        "ultralytics.utils.tuner.run_ray_tune", ("config.update(train_args)", "model_to_train.train(**config)"),
        "a search by Ray trains by the model's own `train`, with what Ray has drawn",
    ),
    Order(
        "ultralytics.nn.tasks.parse_model", ('d["backbone"] + d["head"]',),
        "the host asks a model's `yaml` for its layers where it would build another head",
    ),
    Order(
        "ultralytics.utils.dist.generate_ddp_file", ('"trainer": type(trainer)', '"model": trainer.model'),
        "on several GPUs the trainer class goes along by value, flags and all",
    ),
    Order(
        f"{_TRAINER}._do_train", ("self._handle_nan_recovery(epoch)", "self.save_model()"),
        "on several GPUs the random numbers of all processes are there when the first saves",
    ),
    Order(
        f"{_DETECT}.val.DetectionValidator.gather_stats", ("dist.gather_object(self.metrics.stats",),
        "on several GPUs what regions say of detections is gathered with the rest",
    ),
)  # fmt: skip


def find(name: str) -> Any:
    """What a dotted name stands for; AttributeError where there is nothing."""
    parts = name.split(".")
    for count in range(len(parts) - 1, 0, -1):
        try:
            found: Any = import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            found = inspect.getattr_static(found, part)
        return found.__func__ if isinstance(found, staticmethod) else found
    raise AttributeError(name)


def parameters(found: Any) -> str:
    """The names of its parameters."""
    return " ".join(inspect.signature(found).parameters)


def wrong(name: str, takes: str, why: str) -> str:
    """In what an inside is another than we know it, in a sentence; "" where it is as it was."""
    host = name.partition(".")[0]
    told = f"{host} {versions()[host]}"
    try:
        found = find(name)
    except AttributeError:
        return f"{told} has no {name} any more, on which stands that {why}"
    if takes != ATTRIBUTE and parameters(found) != takes:
        return f"{told}: {name} takes ({parameters(found)}), no longer ({takes}); on it stands that {why}"
    return ""


def out_of_order(order: Order) -> str:
    """Where a function does something else than we know of it, in a sentence; "" where it does not."""
    host = order.function.partition(".")[0]
    told = f"{host} {versions()[host]}"
    try:
        source, place = inspect.getsource(find(order.function)), -1
    except AttributeError:
        return f"{told} has no {order.function} any more, on which stands that {order.why}"
    for text in order.texts:
        if (place := source.find(text, place + 1)) < 0:
            return f"{told}: {order.function} has no `{text}` where it had it; on it stands that {order.why}"
    return ""


def drift() -> list[str]:
    """Everything that is not as we know it, a sentence each."""
    found = [wrong(name, takes, why) for why, names in INSIDES.items() for name, takes in names.items()]
    return [*filter(None, found), *filter(None, map(out_of_order, ORDERS))]
