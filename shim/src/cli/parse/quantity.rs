//! Amounts: memory (`256m`), processors (`1.5`).

/// Microseconds of a scheduling period, as kubelet sets it.
pub const CPU_PERIOD: i64 = 100_000;
/// The kernel refuses a quota below a millisecond.
const LEAST_QUOTA: i64 = 1000;

/// Bytes: a number with `b`, `k`, `m`, `g`, `t` (binary, like docker's), or Kubernetes' `Ki`, `Mi`, `Gi`, `Ti`.
pub fn memory(text: &str) -> Result<i64, String> {
    let wrong = || format!("{text:?} is no amount of memory: write it like 256m, 1.5g or 512Mi");
    let digits = text.find(|c: char| c != '.' && !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "ki" | "kib" => 10,
        "m" | "mb" | "mi" | "mib" => 20,
        "g" | "gb" | "gi" | "gib" => 30,
        "t" | "tb" | "ti" | "tib" => 40,
        _ => return Err(wrong()),
    };
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let bytes = number * (1_u64 << shift) as f64;
    // A petabyte is a typing error, and far from where f64 loses bytes.
    if (1.0..=1e15).contains(&bytes) { Ok(bytes as i64) } else { Err(wrong()) }
}

/// Processors, as microseconds of each [`CPU_PERIOD`].
pub fn cpus(text: &str) -> Result<i64, String> {
    let wrong = || format!("{text:?} is no number of processors: write it like 2, 0.5 or 500m");
    let number = match text.strip_suffix('m') {
        Some(milli) => milli.parse::<u32>().map_err(|_| wrong())? as f64 / 1000.0,
        None => text.parse::<f64>().map_err(|_| wrong())?,
    };
    let quota = (number * CPU_PERIOD as f64).round();
    if (LEAST_QUOTA as f64..=1e10).contains(&quota) { Ok(quota as i64) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn memory_is_binary() {
        let cases = [
            ("1048576", 1 << 20),
            ("256m", 256 << 20),
            ("1.5g", 3 << 29),
            ("512Mi", 512 << 20),
            ("4KB", 4096),
            ("10b", 10),
        ];
        for (text, bytes) in cases {
            assert_eq!(memory(text), Ok(bytes), "{text}");
        }
        for text in ["", "0", "m", "-1m", "1x", "1.2.3m", "9999999t", "NaN", "inf", "1 m"] {
            assert!(memory(text).is_err(), "{text}");
        }
    }

    #[test]
    fn processors_are_a_quota() {
        assert_eq!(cpus("1.5"), Ok(150_000));
        assert_eq!(cpus("500m"), Ok(50_000));
        assert_eq!(cpus("0.01"), Ok(1000));
        for text in ["", "0", "-1", "0.001", "x", "NaN", "inf", "1e9", "m"] {
            assert!(cpus(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_is_too_strange(text in ".{0,20}") {
            let _ = (memory(&text), cpus(&text));
        }
    }
}
