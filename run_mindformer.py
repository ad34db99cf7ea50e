"""Train, fine-tune, evaluate or run GPT-2 as a YAML file says: `python run_mindformer.py --config FILE [flags]`."""

from mindgpt.tasks.main import main

if __name__ == "__main__":
    main()
