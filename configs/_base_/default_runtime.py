# What every task shares: hooks, environment and logging of a run.
custom_imports = dict(
    imports=['overlock_mm', 'overlock_mm.engine.checkpoint_hook'], allow_failed_imports=False
)

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    # mmengine's own hook writes in place: a run killed while saving loses a checkpoint.
    # Keep three, as each one takes about a gigabyte with its optimizer state.
    checkpoint=dict(type='AtomicCheckpointHook', interval=1, max_keep_ckpts=3),
    sampler_seed=dict(type='DistSamplerSeedHook'),
)

# Whether tools/train.py also writes what TensorBoard reads, into the run's folder `vis_data`.
tensorboard = False

env_cfg = dict(
    # Image sizes change from batch to batch: timing algorithms for each costs more than it saves.
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)

log_level = 'INFO'
load_from = None
resume = False
