from ray_distill.api import Run as Run
from ray_distill.api import SearchResult as SearchResult
from ray_distill.api import distill as distill
from ray_distill.api import evaluate as evaluate
from ray_distill.api import load_external_set as load_external_set
from ray_distill.api import search as search
from ray_distill.artifacts.dataset import DistilledDataset as DistilledDataset
from ray_distill.config.config import Config as Config
from ray_distill.config.load import load_config as load_config
from ray_distill.distillation.callbacks import Callback as Callback
from ray_distill.errors import RunError as RunError
from ray_distill.errors import UserError as UserError
from ray_distill.evaluation.run import Evaluation as Evaluation
from ray_distill.tuning.config import SearchConfig as SearchConfig
from ray_distill.tuning.config import load_search as load_search

__version__: str
