# Sourced by the MIMIC-CXR presets: names the data sets, or says how to make them.

mimic_folder=${MIMIC_DIR:-data/mimic}
if [[ ! -e $mimic_folder && -e $ROOT/$mimic_folder ]]; then
    mimic_folder=$ROOT/$mimic_folder
fi
if [[ -z ${DATASETS-} ]] && ! given dataset_use "$@" >/dev/null; then
    if [[ ! -f $mimic_folder/mimic_train.json ]]; then
        fail "$mimic_folder/mimic_train.json is not there yet. Make it from your copy of MIMIC-CXR:" \
            "python $ROOT/tools/prepare_mimic_cxr.py --jpg_root <MIMIC-CXR-JPG> --reports <mimic-cxr-reports.zip> --out" \
            "$mimic_folder (or set MIMIC_DIR to where it is, or DATASETS to data of your own)"
    fi
    export DATASETS=mimic_train
    if [[ -f $mimic_folder/mimic_valid.json ]]; then
        export EVAL_DATASETS="${EVAL_DATASETS-mimic_valid}"
    fi
fi
