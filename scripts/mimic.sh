# Sourced by the MIMIC-CXR presets: set the datasets, or fail with the command that prepares them.

mimic_folder=${MIMIC_DIR:-data/mimic}
if [[ ! -e $mimic_folder && -e $ROOT/$mimic_folder ]]; then
    mimic_folder=$ROOT/$mimic_folder
fi
if [[ -z ${DATASETS-} ]] && ! given dataset_use "$@" >/dev/null; then
    if [[ ! -f $mimic_folder/mimic_train.json ]]; then
        fail "$mimic_folder/mimic_train.json does not exist yet. Prepare it from your copy of MIMIC-CXR:" \
            "python $ROOT/tools/prepare_mimic_cxr.py --jpg_root <MIMIC-CXR-JPG> --reports <mimic-cxr-reports.zip> --out" \
            "$mimic_folder (or set MIMIC_DIR to its folder, or DATASETS to your own data)"
    fi
    export DATASETS=mimic_train
    if [[ -f $mimic_folder/mimic_valid.json ]]; then
        export EVAL_DATASETS="${EVAL_DATASETS-mimic_valid}"
    fi
fi
